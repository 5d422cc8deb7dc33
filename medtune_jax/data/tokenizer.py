"""The tokenizer front: text to ids and back, for a Hugging Face model folder.

Where the folder holds `tokenizer.model`, sentencepiece itself encodes: transformers 5 gives other ids on real text
(double and leading spaces). Else `tokenizer.json` is read with `tokenizers`. Neither path ever turns a special string
such as "</s>" in a user's text into a special id, and neither adds BOS or EOS: data/encode.py does, visibly.
"""

from __future__ import annotations

import abc
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medtune_jax.errors import UserError

Span = tuple[int, int]

_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

# A checkpoint's embedding may be padded (to a multiple of up to 256) beyond its tokenizer; more is another tokenizer.
_PADDING = 256


class Tokenizer(abc.ABC):
    """Text <-> ids. Spans are [start, end) in characters of the text given.

    Attributes:
      folder: where it was loaded from.
      vocab_size: number of ids it can produce.
      bos_id, eos_id: always present (loading refuses a tokenizer without them).
      unk_id: -1 where the vocabulary has none.
      sha256: identity of the vocabulary and of bos and eos.
    """

    folder: Path
    vocab_size: int
    bos_id: int
    eos_id: int
    unk_id: int
    sha256: str

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without BOS or EOS."""
        return self.encode_batch([text])[0].tolist()

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Returns (ids, the characters that each id stands for).

        Every byte-fallback id of one character has that character's span. An id that stands for nothing in the text
        (the space put before the first word) has an empty span.
        """
        ids, spans = self.encode_batch_with_offsets([text])[0]
        return ids.tolist(), [(int(start), int(end)) for start, end in spans]

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns ids, int32 [S_i], for each text."""

    @abc.abstractmethod
    def encode_batch_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns (ids int32 [S_i], spans int32 [S_i, 2]) for each text."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; special ids and ids outside the vocabulary stand for nothing."""

    @abc.abstractmethod
    def pieces(self) -> list[bytes | None]:
        """Returns what each id stands for inside a text; None for special and unused ids.

        Raises:
          UserError: pieces stand for other text beside other pieces (WordPiece and the like).
        """

    def copy_to(self, folder: str | Path) -> None:
        """Copies the tokenizer's files into `folder`, which is made if absent."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            if (self.folder / name).is_file() and (self.folder / name).resolve() != (target / name).resolve():
                shutil.copyfile(self.folder / name, target / name)


class _SentencePiece(Tokenizer):
    def __init__(self, folder: Path, threads: int | None):
        import sentencepiece

        self.folder = folder
        self._threads = -1 if threads is None else threads
        path = folder / "tokenizer.model"
        content = path.read_bytes()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise UserError(f"{path} is not a sentencepiece model (damaged or cut off?): {error}") from None
        self.vocab_size = self._processor.vocab_size()
        self.bos_id, self.eos_id = self._processor.bos_id(), self._processor.eos_id()
        self.unk_id = self._processor.unk_id()
        self.sha256 = hashlib.sha256(content).hexdigest()
        _check_ends(path, self.bos_id, self.eos_id)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self._processor.encode(list(texts), return_type="numpy", num_threads=self._threads)

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        encoded = []
        for found in self._processor.encode(list(texts), return_type="offset_mapping", num_threads=self._threads):
            ids = np.asarray(found["ids"], np.int32)
            spans = np.asarray(found["offsets"], np.int32).reshape(-1, 2)
            # sentencepiece gives a character's span to the last of its byte pieces and an empty one to the others.
            for i in np.flatnonzero(spans[:, 0] == spans[:, 1])[::-1]:
                if self._processor.is_byte(int(ids[i])):
                    spans[i] = spans[i + 1]
            encoded.append((ids, spans))
        return encoded

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(i) for i in ids if 0 <= i < self.vocab_size])

    def pieces(self) -> list[bytes | None]:
        processor = self._processor
        return [
            None
            if processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i)
            else _spaced(processor.id_to_piece(i), is_byte=processor.is_byte(i))
            for i in range(self.vocab_size)
        ]

    def copy_to(self, folder: str | Path) -> None:
        super().copy_to(folder)
        path = Path(folder) / "tokenizer_config.json"
        if not path.is_file():
            # Without this file transformers adds no BOS, and a tuned model is then asked what it was never taught.
            config = {
                "tokenizer_class": "LlamaTokenizer",
                "bos_token": self._processor.id_to_piece(self.bos_id),
                "eos_token": self._processor.id_to_piece(self.eos_id),
                "unk_token": self._processor.id_to_piece(self.unk_id),
                "add_bos_token": True,
                "add_eos_token": False,
                "legacy": True,
                "clean_up_tokenization_spaces": False,
            }
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class _TokenizersFile(Tokenizer):
    def __init__(self, folder: Path):
        import tokenizers

        self.folder = folder
        path = folder / "tokenizer.json"
        content = path.read_bytes()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path} is not a tokenizer file (damaged or cut off?): {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # "</s>" in a user's text stays text
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        names = _special_tokens(folder)
        self.bos_id, self.eos_id, self.unk_id = (self._id(names.get(f"{kind}_token")) for kind in ("bos", "eos", "unk"))
        self.sha256 = hashlib.sha256(content + f"bos {self.bos_id} eos {self.eos_id}".encode()).hexdigest()
        _check_ends(path, self.bos_id, self.eos_id)

    def _id(self, token: str | None) -> int:
        found = None if token is None else self._tokenizer.token_to_id(token)
        return -1 if found is None else found

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(found.ids, np.int32) for found in encoded]

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.asarray(found.ids, np.int32), np.asarray(found.offsets, np.int32).reshape(-1, 2)) for found in encoded
        ]

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids if 0 <= i < self.vocab_size], skip_special_tokens=True)

    def pieces(self) -> list[bytes | None]:
        parts = _decoders(json.loads(self._tokenizer.to_str())["decoder"])
        byte_of = _byte_characters()
        added = self._tokenizer.get_added_tokens_decoder()

        def piece(token: str) -> bytes:
            if "ByteLevel" in parts:
                return bytes(byte_of[character] for character in token)
            return _spaced(token, is_byte="ByteFallback" in parts and _BYTE.fullmatch(token) is not None)

        if not parts & {"ByteLevel", "Metaspace", "ByteFallback"}:
            raise UserError(
                f"The pieces of {self.folder / 'tokenizer.json'} are not parts of a text (decoder: "
                f"{', '.join(sorted(parts)) or 'none'}): only byte-level and sentencepiece-like vocabularies can be "
                "held to a grammar."
            )
        found: dict[int, bytes | None] = {
            i: piece(token) for token, i in self._tokenizer.get_vocab(with_added_tokens=False).items() if i not in added
        }
        found |= {i: None if token.special else token.content.encode() for i, token in added.items()}
        found |= dict.fromkeys((self.bos_id, self.eos_id, self.unk_id))
        return [found.get(i) for i in range(self.vocab_size)]


def load_tokenizer(folder: str | Path, *, threads: int | None = None) -> Tokenizer:
    """Loads the tokenizer of a Hugging Face folder. threads: of sentencepiece on a batch; None = one for each core.

    Raises:
      UserError: the folder or its tokenizer files are missing or damaged, or there is no BOS or EOS.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"No tokenizer: {folder} is not a folder. Give a Hugging Face model directory.")
    if (folder / "tokenizer.model").is_file():
        return _SentencePiece(folder, threads)
    if (folder / "tokenizer.json").is_file():
        return _TokenizersFile(folder)
    raise UserError(
        f"No tokenizer in {folder}: neither tokenizer.model nor tokenizer.json is there. "
        "Copy the tokenizer's files beside the model."
    )


def check_vocab(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises UserError where `tokenizer` cannot belong to a model with `vocab_size` embeddings."""
    if tokenizer.vocab_size > vocab_size or vocab_size - tokenizer.vocab_size >= _PADDING:
        raise UserError(
            f"Wrong tokenizer: the one in {tokenizer.folder} has {tokenizer.vocab_size} pieces, but the model's "
            f"config.json says vocab_size {vocab_size}. Put the model's own tokenizer into its folder."
        )


_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _spaced(piece: str, *, is_byte: bool) -> bytes:
    """Returns what a piece of a sentencepiece vocabulary stands for; is_byte: it is one byte, as `<0x0A>`."""
    return bytes([int(piece[3:5], 16)]) if is_byte else piece.replace("\u2581", " ").encode()


def _decoders(decoder: dict[str, Any] | None) -> set[str]:
    """Returns the types of a tokenizer.json's decoder and of those that it consists of."""
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*(_decoders(one) for one in decoder.get("decoders", ())))


def _byte_characters() -> dict[str, int]:
    """Returns the characters by which byte-level vocabularies write bytes (GPT-2's: printable Latin-1 as it is, the
    other bytes in their order as U+0100 and up)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


def _check_ends(path: Path, bos_id: int, eos_id: int) -> None:
    for name, found in (("bos", bos_id), ("eos", eos_id)):
        if found < 0:
            raise UserError(
                f"The tokenizer {path} has no {name.upper()} token, and every document needs one. "
                f"Name it as {name}_token in tokenizer_config.json (for sentencepiece: train it with {name}_id)."
            )


def _special_tokens(folder: Path) -> dict[str, str]:
    """Returns bos_token, eos_token and unk_token as the folder's files name them."""
    names: dict[str, str] = {}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / file
        if not path.is_file():
            continue
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from None
        for kind in ("bos_token", "eos_token", "unk_token"):
            token = found.get(kind)
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                names.setdefault(kind, content)
    return names

"""Text while it is written: pieces make up the text of whole decoding, stop strings are found wherever tokens end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engine import LongestMatch

from medtune_jax.convert.tiny import write_tiny_model
from medtune_jax.data.tokenizer import Tokenizer, load_tokenizer
from medtune_jax.errors import UserError
from medtune_jax.generate.core import Core
from medtune_jax.generate.writing import Writing, stop_strings

SENTENCES = ["velol relieves talgitis .\n No case of morvoma was seen .", "### Output:\n talgitis : B\n of : O"] * 3
AWKWARD = st.text(st.sampled_from("ab  \n#é€🎉好�"), max_size=30)


def byte_level(folder: Path) -> Tokenizer:
    """A tokenizer as Llama 3's: its pieces are bytes, which may begin and end inside characters."""
    from tokenizers import Tokenizer as Trained
    from tokenizers import decoders, models, pre_tokenizers, trainers

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([*SENTENCES, "é€🎉好 é€🎉好"], trainer)
    folder.mkdir()
    trained.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return load_tokenizer(folder)


@pytest.fixture(scope="module", params=["sentencepiece", "byte-level", "longest match"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "files"
    if request.param == "longest match":
        return LongestMatch(["ab", "b#", "##", " a"])
    if request.param == "byte-level":
        return byte_level(folder)
    write_tiny_model(folder, SENTENCES)
    return load_tokenizer(folder)


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> str:
    return Core.continuation(SimpleNamespace(tokenizer=tokenizer), prompt, ids)  # type: ignore[arg-type]


def write(
    tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int], sizes: Sequence[int], stop: Sequence[str] = ()
) -> tuple[Writing, list[str]]:
    """Writes ids in portions of these sizes, then the rest; returns the pieces that came."""
    writing = Writing(lambda before, new: continuation(tokenizer, before, new), prompt, stop)
    pieces, at = [], 0
    for size in (*sizes, len(ids)):
        if at < len(ids) and not writing.stopped:
            portion = ids[at : at + size]
            writing.add(portion)
            pieces.append(writing.settle(len(portion)))
            at += size
    if not writing.stopped:
        pieces.append(writing.end())
    return writing, pieces


STOP = st.lists(st.text(st.sampled_from("ab \n#é🎉"), min_size=1, max_size=4), max_size=3)
SIZES = st.lists(st.integers(1, 5), max_size=12)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), sizes=SIZES)
def test_pieces_of_any_ids_make_up_their_text_and_never_tear_a_character(
    tokenizer: Tokenizer, data: st.DataObject, sizes: list[int]
) -> None:
    ids = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=25)
    prompt, answer = [1, *data.draw(ids)], data.draw(ids)
    writing, pieces = write(tokenizer, prompt, answer, sizes)
    assert "".join(pieces) == writing.text == continuation(tokenizer, prompt, answer)


@settings(max_examples=80, deadline=None)
@given(text=AWKWARD, sizes=SIZES)
def test_no_piece_of_a_text_has_half_a_character(tokenizer: Tokenizer, text: str, sizes: list[int]) -> None:
    if isinstance(tokenizer, LongestMatch):
        text = "".join(filter(str.isascii, text))
    text = text.replace("�", "")
    writing, pieces = write(tokenizer, [1], tokenizer.encode(text), sizes)
    assert "".join(pieces) == writing.text == text
    assert not any("�" in piece for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(text=AWKWARD, sizes=SIZES, stop=STOP)
def test_a_text_ends_before_the_stop_string_that_is_complete_first(
    tokenizer: Tokenizer, text: str, sizes: list[int], stop: list[str]
) -> None:
    if isinstance(tokenizer, LongestMatch):
        text = "".join(filter(str.isascii, text))
    ids = tokenizer.encode(text)
    writing, pieces = write(tokenizer, [1, *tokenizer.encode("a#")], ids, sizes, stop)
    text = continuation(tokenizer, [1, *tokenizer.encode("a#")], ids)
    found = [(text.index(one) + len(one), text.index(one)) for one in stop if one in text]
    assert writing.stopped == bool(found)
    end, start = min(found, default=(0, len(text)))
    assert "".join(pieces) == writing.text == text[:start]
    if found:
        tokens, passes = writing.counts()
        before = [1, *tokenizer.encode("a#")]
        for count, whole in ((tokens, text[:start]), (passes, text[:end])):
            assert continuation(tokenizer, before, ids[:count]).startswith(whole)
            assert count == 0 or not continuation(tokenizer, before, ids[: count - 1]).startswith(whole)


def test_text_comes_as_soon_as_it_is_final() -> None:
    tokenizer = LongestMatch()
    writing = Writing(lambda before, new: continuation(tokenizer, before, new), [1], ("##!",))
    given_out = []
    for character in "a#b##c###!d":
        writing.add(tokenizer.encode(character))
        given_out.append(writing.settle(1))
        if writing.stopped:
            break
    assert given_out == ["a", "", "#b", "", "", "##c", "", "", "#", ""]
    assert writing.text == "a#b##c#"


@pytest.mark.parametrize("length", [400, 800])
def test_every_id_is_decoded_a_bounded_number_of_times(tokenizer: Tokenizer, length: int) -> None:
    decoded = 0

    def added(before: Sequence[int], new: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(before) + len(new)
        return continuation(tokenizer, before, new)

    ids = (tokenizer.encode("ab ## ") * length)[:length]
    writing = Writing(added, [1], ("zzz",))
    for at in range(0, length, 4):
        writing.add(ids[at : at + 4])
        writing.settle(4)
    writing.end()
    assert decoded < 5 * length


def test_stop_strings_that_cannot_be_meant_are_refused() -> None:
    assert stop_strings(["###", "\n"]) == ("###", "\n")
    with pytest.raises(UserError, match="empty"):
        stop_strings(["###", ""])
    with pytest.raises(UserError, match="list"):
        stop_strings("###")

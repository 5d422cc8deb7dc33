"""The tokenizer front: special strings stay text, spans are in characters, wrong files are refused by name."""

import json
import shutil

import pytest
from data_samples import train_sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune_jax.data.tokenizer import check_vocab, load_tokenizer
from medtune_jax.errors import UserError

UNICODE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40)


@settings(max_examples=60, deadline=None)
@given(text=UNICODE)
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=60, deadline=None)
@given(text=UNICODE)
def test_spans_are_characters_in_order_that_cover_the_text(tokenizer, text):
    ids, spans = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    at = 0
    for start, end in spans:
        assert start <= at <= end or (start, end) == (0, 0)
        at = max(at, end)
    assert at == len(text)


def test_each_byte_of_a_character_has_the_characters_span(tokenizer):
    text = "é 🎉x"
    ids, spans = tokenizer.encode_with_offsets(text)
    party = [i for i, span in enumerate(spans) if span == (2, 3)]
    assert len(party) == 4
    assert tokenizer.decode([ids[i] for i in party]) == "🎉"


@settings(max_examples=60, deadline=None)
@given(text=UNICODE)
def test_the_bytes_of_the_pieces_are_the_text(tokenizer, text):
    pieces = tokenizer.pieces()
    assert len(pieces) == tokenizer.vocab_size
    assert b"".join(pieces[i] for i in tokenizer.encode("\n" + text)).decode().removeprefix(" ") == "\n" + text
    assert {pieces[i] for i in (tokenizer.bos_id, tokenizer.eos_id)} == {None}


@pytest.mark.parametrize("text", ["</s>", "a </s> <s> b", "<unk>", "<|end|>", "x<|begin|>y", "<pad>"])
def test_special_strings_in_text_never_become_special_ids(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_with_offsets(text)[0] == ids


def test_ids_without_text_decode_to_nothing(tokenizer):
    ids = tokenizer.encode("cancer")
    beyond = tokenizer.vocab_size  # a padded embedding has rows that no text uses
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id, beyond]) == "cancer"


def test_encoding_in_a_batch_changes_nothing(tokenizer):
    texts = ["breast : B", "", " two  spaces ", "🎉\n"]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [tokenizer.encode(text) for text in texts]


def test_a_copy_is_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.copy_to(tmp_path / "copy")
    copy = load_tokenizer(tmp_path / "copy")
    assert copy.sha256 == tokenizer.sha256
    assert (copy.bos_id, copy.eos_id, copy.vocab_size) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size)


def test_a_copied_sentencepiece_model_begins_documents_in_transformers_too(pieces, tmp_path):
    pieces.copy_to(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["add_bos_token"] is True
    assert (config["bos_token"], config["eos_token"]) == ("<s>", "</s>")


def test_the_hash_tells_tokenizers_apart(sentencepiece_folder, bytelevel_folder, tmp_path):
    other = train_sentencepiece(tmp_path, vocab_size=370)
    folders = (sentencepiece_folder, bytelevel_folder, other)
    assert len({load_tokenizer(folder).sha256 for folder in folders}) == 3


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"neither tokenizer.model nor tokenizer.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_a_damaged_file_is_named(tmp_path, name, sentencepiece_folder, bytelevel_folder):
    source = next(folder / name for folder in (sentencepiece_folder, bytelevel_folder) if (folder / name).is_file())
    (tmp_path / name).write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{name} is not a .* \\(damaged or cut off\\?\\)"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_eos_or_bos_is_refused(tmp_path, bytelevel_folder):
    with pytest.raises(UserError, match="no EOS token"):
        load_tokenizer(train_sentencepiece(tmp_path, eos_id=-1))
    folder = tmp_path / "file"
    shutil.copytree(bytelevel_folder, folder)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    with pytest.raises(UserError, match=r"no BOS token.*bos_token"):
        load_tokenizer(folder)


def test_a_tokenizer_of_another_model_is_refused_and_a_padded_embedding_is_not(pieces):
    check_vocab(pieces, pieces.vocab_size)
    check_vocab(pieces, pieces.vocab_size + 1)
    check_vocab(pieces, 512)
    for other in (pieces.vocab_size - 1, 32_000):
        with pytest.raises(UserError, match=f"Wrong tokenizer: .* {pieces.vocab_size} pieces.*vocab_size {other}"):
            check_vocab(pieces, other)


def test_llama_2_writes_the_output_header_differently_after_a_space_and_after_a_line_break(llama2):
    assert llama2.encode("### Output:") == [835, 10604, 29901]
    assert llama2.encode("x\n ### Output:")[-3:] == [835, 10604, 29901]
    assert llama2.encode("x\n\n### Output:")[-4:] == [2277, 29937, 10604, 29901]
    assert (llama2.vocab_size, llama2.unk_id, llama2.bos_id, llama2.eos_id) == (32_000, 0, 1, 2)


def test_the_tokenizers_form_of_llama_2_gives_sentencepieces_ids(llama2, shared_data, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shared_data / "tokenizers" / "llama2" / name, tmp_path)
    file = load_tokenizer(tmp_path)
    texts = (shared_data / "raw" / "hoc" / "dev.tsv").read_text(encoding="utf-8").split("\n")
    texts += ["</s> <s>", " leading", "two  spaces", "a\n\n### b", "中🎉", ""]
    assert all((a == b).all() for a, b in zip(file.encode_batch(texts), llama2.encode_batch(texts), strict=True))

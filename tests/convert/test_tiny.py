"""The tiny seeded model: a whole Hugging Face directory whose tokenizer keeps every character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtune_jax.convert.hf_import import read_config, weights_sha256
from medtune_jax.convert.tiny import write_tiny_model
from medtune_jax.data.tokenizer import load_tokenizer
from medtune_jax.errors import UserError

TEXTS = ["velol relieves talgitis .\n No case of morvoma was seen ."] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    made = tmp_path_factory.mktemp("tiny") / "model"
    write_tiny_model(made, TEXTS)
    return made


def test_model_and_tokenizer_belong_together(folder):
    config, tokenizer = read_config(folder), load_tokenizer(folder)
    assert config.vocab_size == tokenizer.vocab_size
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert config.num_kv_heads < config.num_heads


@given(st.text(st.characters(exclude_characters="\x00\u2581", exclude_categories=["Cs"])))
def test_every_text_survives_the_tokenizer(folder, text):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_line_break_is_a_token_of_its_own(folder):
    tokenizer = load_tokenizer(folder)
    ids, spans = tokenizer.encode_with_offsets(TEXTS[0])
    assert (TEXTS[0].index("\n"), TEXTS[0].index("\n") + 1) in spans
    assert len(ids) < len(TEXTS[0]) / 2


def test_a_seed_decides_the_weights(folder, tmp_path):
    write_tiny_model(tmp_path / "same", TEXTS)
    write_tiny_model(tmp_path / "other", TEXTS, seed=1)
    assert weights_sha256(tmp_path / "same") == weights_sha256(folder) != weights_sha256(tmp_path / "other")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        write_tiny_model(tmp_path, TEXTS)

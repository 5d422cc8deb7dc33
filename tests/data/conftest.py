"""Small tokenizers trained on the spot, and rows: written here, and real ones where they are at hand."""

import json
from pathlib import Path

import pytest
from data_samples import TEXT, ner_row, train_sentencepiece

from medtune_jax.data.tokenizer import Tokenizer, load_tokenizer
from medtune_jax.tasks.rows import Row


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp("sentencepiece"))


@pytest.fixture(scope="session")
def bytelevel_folder(tmp_path_factory) -> Path:
    """A folder with only a tokenizer.json, byte-level as Llama 3's."""
    from tokenizers import Tokenizer as Trained
    from tokenizers import decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("bytelevel")
    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(TEXT.split("\n"), trainer)
    trained.save(str(folder / "tokenizer.json"))
    names = {"bos_token": {"content": "<|begin|>"}, "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="session", params=["sentencepiece", "bytelevel"])
def tokenizer(request) -> Tokenizer:
    return load_tokenizer(request.getfixturevalue(f"{request.param}_folder"))


@pytest.fixture(scope="session")
def pieces(sentencepiece_folder) -> Tokenizer:
    return load_tokenizer(sentencepiece_folder)


@pytest.fixture(scope="session")
def ncbi_rows(shared_data) -> list[Row]:
    blocks = (shared_data / "raw" / "NCBI-disease" / "train.tsv").read_text(encoding="utf-8").strip().split("\n\n")
    return [ner_row(block.replace("\t", "/").replace("\n", " "), "NCBI-disease") for block in blocks]


@pytest.fixture(scope="session", params=["tokenizers/llama2", "models/stories260K"])
def real_tokenizer(request, shared_data) -> Tokenizer:
    return load_tokenizer(shared_data / request.param)


@pytest.fixture(scope="session")
def llama2(shared_data) -> Tokenizer:
    return load_tokenizer(shared_data / "tokenizers" / "llama2")

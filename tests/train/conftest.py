"""One tiny checkpoint, tokenizer and data set for all tests of training; not to be changed by a test."""

from pathlib import Path

import pytest
from tiny_run import write_data, write_model

from medtune_jax.data.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("rows") / "data")


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> Tokenizer:
    return load_tokenizer(model_folder)

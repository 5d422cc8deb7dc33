"""One tiny checkpoint, tokenizer and data set for all tests of training; not to be changed by a test."""

import shutil
from pathlib import Path

import pytest
from resumable import run_settings, write_home
from tiny_run import write_data, write_model

from medtune_jax.data.tokenizer import Tokenizer, load_tokenizer
from medtune_jax.train.loop import train


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("rows") / "data")


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> Tokenizer:
    return load_tokenizer(model_folder)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose dimensions eight devices divide, and rows."""
    return write_home(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="session")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps over fsdp=8 with its checkpoints 4 and 6."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    train(run_settings(home), workdir)
    return workdir


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))

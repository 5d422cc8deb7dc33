"""One checkpoint of each shape class, written once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from llama_reference import SHAPE_CLASSES


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns name -> folder; a folder is written when it is first asked for and is not to be changed."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = SHAPE_CLASSES[name](tmp_path_factory.mktemp(name))
        return folders[name]

    return folder

"""The four real corpora, read once."""

import pytest

from medtune_jax.data_prep.conll import read_conll
from medtune_jax.tasks.registry import SOURCES

CORPORA = ("NCBI-disease", "BC5CDR-disease", "BC5CDR-chem", "JNLPBA")


@pytest.fixture(scope="session")
def corpora(shared_data):
    """(source, split) -> [(tokens, tags)]."""
    return {
        (name, split): read_conll(shared_data / "raw" / name / file, SOURCES[name].task).annotations
        for name in CORPORA
        for split, file in SOURCES[name].files.items()
    }

"""The four real corpora, read once; property tests without a clock (the first example pays for lazy imports)."""

import pytest
from hypothesis import settings

from medtune_jax.data_prep.readers.conll import read_conll
from medtune_jax.tasks.registry import SOURCES

settings.register_profile("no_clock", deadline=None)
settings.load_profile("no_clock")

CORPORA = ("NCBI-disease", "BC5CDR-disease", "BC5CDR-chem", "JNLPBA")


@pytest.fixture(scope="session")
def corpora(shared_data):
    """(source, split) -> [(tokens, tags)]."""
    return {
        (name, split): read_conll(shared_data / "raw" / name / file, SOURCES[name].task).annotations
        for name in CORPORA
        for split, file in SOURCES[name].layouts[0].files.items()
    }

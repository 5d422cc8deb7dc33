"""All readers of native formats by name; a module of readers holds its own READERS."""

from __future__ import annotations

from medtune_jax.data_prep import (
    bioasq,
    chemprot,
    choice,
    clinical_ie,
    conll,
    dialogues,
    gad,
    hoc,
    i2b2_2010,
    i2b2_2012,
    indexed_tsv,
    instructions,
    labelled,
    pubmedqa,
    table,
)
from medtune_jax.data_prep.native import Reader

READERS: dict[str, Reader] = {
    **conll.READERS,
    **labelled.READERS,
    **indexed_tsv.READERS,
    **gad.READERS,
    **hoc.READERS,
    **i2b2_2010.READERS,
    **i2b2_2012.READERS,
    **chemprot.READERS,
    **choice.READERS,
    **pubmedqa.READERS,
    **bioasq.READERS,
    **clinical_ie.READERS,
    **instructions.READERS,
    **dialogues.READERS,
    **table.READERS,
}

"""All readers of native formats by name; a module of readers holds its own READERS."""

from __future__ import annotations

from medtune_jax.data_prep.native import Reader
from medtune_jax.data_prep.readers import (
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
    nli,
    pubmedqa,
    table,
)
from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.tasks.registry import SOURCES
from medtune_jax.tasks.source import Source

READERS: dict[str, Reader] = {
    **conll.READERS,
    **indexed_tsv.READERS,
    **nli.READERS,
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


def reader_for(source: Source, format: str) -> Reader:
    """Returns the reader of a format.

    Raises:
      UserError: there is none, or it reads annotations of other tasks than the source's: those of the built-in sources
        that have the format; a label is read as a relation is.
    """
    if format not in READERS:
        raise UserError(f"{source.name}: unknown format '{format}'.{did_you_mean(format, READERS)}")
    built_in = [other for other in SOURCES.values() if other.definition is None]
    tasks = [other.task for other in built_in if any(layout.format == format for layout in other.layouts)]
    kinds = {task.kind for task in tasks}
    if "relation" in kinds:
        kinds.add("label")
    if kinds and source.task.kind not in kinds:
        raise UserError(
            f"{source.name}: format '{format}' is for task {', '.join(sorted(kinds))}; its own is {source.task.kind}."
        )
    return READERS[format]

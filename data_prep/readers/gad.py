"""GAD: one fold of the ten that BioBERT distributes, or BLURB's split, as TSV."""

from __future__ import annotations

from pathlib import Path

from medtune_jax.data_prep.native import ANY, Ask, NativeFile, Record, label_of, not_empty
from medtune_jax.data_prep.readers.indexed_tsv import read_lines
from medtune_jax.tasks.base import Task

# Label 1 is an association: the scorers of BioBERT and LinkBERT take it as the positive class.
_LABELS = {"association": {"1": "Positive", "0": "Negative"}, "legacy": {"1": "Negative", "0": "Positive"}}


def read_gad(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (sentence, Positive or Negative) of every line, polarity as asked for; the legacy one stands in the meta.

    BioBERT's dev.tsv is an empty file; it gives no rows.

    Raises:
      UserError: with file and line: other columns than sentence, label (index, sentence, label), a label other than
        0 or 1; with the file: not UTF-8, nothing in it.
    """
    labels = _LABELS[ask.gad_polarity]
    meta = {} if ask.gad_polarity == "association" else {"gad_polarity": ask.gad_polarity}
    found = NativeFile()
    for line in read_lines(path):
        annotation = (line.sentence, label_of(line.label, labels, line.where))
        found.records.append(Record(annotation, id=line.index, meta=meta))
    if ask.split == "validation" and not found.records:
        return found
    return not_empty(found, path, "sentence<TAB>label lines")


READERS = {"gad_tsv": read_gad}

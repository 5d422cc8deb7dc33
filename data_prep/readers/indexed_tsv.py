"""TSV files of BLUE and its kin: the header `index sentence label`, or `sentence<TAB>label` without a header."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medtune_jax.data_prep.native import (
    ANY,
    Ask,
    NativeFile,
    Record,
    label_of,
    not_empty,
    numbered_lines,
    with_negative,
)
from medtune_jax.errors import UserError
from medtune_jax.tasks.base import Task

_HEADERS = (("index", "sentence", "label"), ("sentence", "label"))
# A field as csv writes it in quotes (it may then hold tabs), or plain text up to the next tab.
_FIELD = re.compile(r'"((?:[^"]|"")*)"(?=\t|$)|([^\t]*)')


@dataclass(frozen=True)
class Line:
    """One example: its place (file:line), index ("" where there is none), sentence and label as they stand there."""

    where: str
    index: str
    sentence: str
    label: str


def read_lines(path: Path) -> Iterator[Line]:
    """Yields the examples of a file of two columns (sentence, label) or three (index, sentence, label).

    BLUE writes with Python's csv, which puts a field with a quotation mark in quotes and doubles the mark; BioBERT's
    files are plain. A field is unquoted only where the whole of it is quoted in csv's way.

    Raises:
      UserError: with file and line: other columns than in the lines before, or an empty sentence or label; with the
        file: not UTF-8.
    """
    columns = 0
    for number, line in numbered_lines(path):
        if not line:
            continue
        fields = fields_of(line)
        if not columns:
            columns = len(fields)
            if tuple(field.strip().casefold() for field in fields) in _HEADERS:
                continue
        where = f"{path}:{number}"
        if columns not in (2, 3) or len(fields) != columns:
            expected = {2: "sentence<TAB>label"}.get(columns, "index<TAB>sentence<TAB>label")
            raise UserError(f"{where}: {expected} is expected, found {len(fields)} column(s).")
        index, sentence, label = fields if columns == 3 else ("", *fields)
        if not sentence.strip() or not label.strip():
            raise UserError(f"{where}: the {'label' if sentence.strip() else 'sentence'} is empty.")
        yield Line(where, index, sentence, label.strip())


def blue_labels(task: Task) -> dict[str, str]:
    """Returns label in BLUE's files -> label of the task; `false` is the task's negative label."""
    _, negative = with_negative(task)
    return {**{label: label for label in task.labels}, "false": negative}


def read_blue(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (sentence, label) of every line of BLUE's TSV, its label `false` as the task's negative label.

    The group is the document: what stands before the first `.` of the index.

    Raises:
      UserError: with file and line: as `read_lines`, or an unknown label; with the file: not UTF-8, no rows.
    """
    labels = blue_labels(task)
    found = NativeFile()
    for line in read_lines(path):
        label = label_of(line.label, labels, line.where)
        found.records.append(Record((line.sentence, label), id=line.index, group=line.index.split(".")[0]))
    return not_empty(found, path, "index<TAB>sentence<TAB>label lines")


def read_relation_tsv(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (sentence, label) of every line.

    Raises:
      UserError: with file and line: as `read_lines`, or an unknown label; with the file: not UTF-8, no rows.
    """
    found = NativeFile()
    for line in read_lines(path):
        found.records.append(Record((line.sentence, label_of(line.label, task.labels, line.where)), id=line.index))
    return not_empty(found, path, "sentence<TAB>label lines")


def fields_of(line: str) -> list[str]:
    """Returns the fields of a line; one is unquoted only where the whole of it is quoted in csv's way."""
    fields = []
    at = 0
    while True:
        match = _FIELD.match(line, at)
        assert match is not None  # the plain alternative matches anything
        quoted, plain = match.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        if match.end() == len(line):
            return fields
        at = match.end() + 1


READERS = {"blue_tsv": read_blue, "relation_tsv": read_relation_tsv}

"""Files with named columns, of any task: tsv, csv, json, jsonl, parquet, told apart by the file's ending.

Which column holds what is the layout's; a column that it does not name is looked for under the reader's own word for
it. Cells that hold several values are lists (of parquet and JSON, or as JSON text), or text with a separator.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from medtune_jax.data_prep.native import ANY, Ask, NativeFile, Record, label_of, not_empty, numbered_lines
from medtune_jax.data_prep.readers.csv_files import csv_records
from medtune_jax.data_prep.readers.indexed_tsv import fields_of
from medtune_jax.data_prep.readers.json_files import json_objects
from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.definition import OPTION_LETTERS, ROW_COLUMNS
from medtune_jax.tasks.extract import ExtractTask
from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.source import Layout
from medtune_jax.tasks.text import clean_text


@dataclass(frozen=True)
class _Line:
    """One record: where it stands, what it holds, and how its cells are to be read."""

    where: str
    cells: Mapping[str, Any]
    layout: Layout
    task: Task

    def fail(self, problem: str) -> NoReturn:
        raise UserError(f"{self.where}: {problem}")

    def cell(self, key: str) -> Any:
        """Returns the cell of the column that the layout names for `key`."""
        column = self.layout.columns.get(key, key)
        if column not in self.cells:
            self.fail(
                f"no column '{column}'; name it in the definition's [columns] as {key} = '...'."
                + did_you_mean(column, map(str, self.cells))
            )
        return self.cells[column]

    def text(self, key: str, *, may_be_empty: bool = False) -> str:
        cell = self.cell(key)
        text = "" if cell is None else clean_text(cell) if isinstance(cell, str) else None
        if text is None:
            self.fail(f"{key} must be text, found {type(cell).__name__}.")
        if not text and not may_be_empty:
            self.fail(f"{key} is empty.")
        return text

    def label(self, cell: Any, known: tuple[str, ...], what: str) -> str:
        """Returns the task's label for a cell, in any case; `label_names` counts first."""
        spelled = _spelled(cell)
        if spelled is None:
            self.fail(f"{what} must be one value, found {type(cell).__name__}.")
        own = {label: label for label in known if label not in self.layout.label_names}
        return label_of(spelled, {**self.layout.label_names, **own}, self.where, what)

    def several(self, key: str, separator: str = "") -> list[Any]:
        """Returns the values of a cell that holds several; none where it is empty."""
        cell = self.cell(key)
        separator = self.layout.separator or separator
        if isinstance(cell, str) and separator:
            return [part.strip() for part in cell.split(separator) if part.strip()]
        if isinstance(cell, str) and cell.strip():
            try:
                cell = json.loads(cell)
            except json.JSONDecodeError:
                cell = None
            if not isinstance(cell, list | dict):
                self.fail(f"{key} must be a list; for values in one text give the definition's `separator`.")
        if isinstance(cell, Mapping):
            return list(cell.values())
        if cell is not None and not isinstance(cell, list | str):
            self.fail(f"{key} must be a list, found {type(cell).__name__}.")
        return list(cell or [])


def read_table(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns a record for every line, object or row of the file.

    Raises:
      UserError: with file and line (parquet: row): a column missing, a cell that does not hold what the task needs, an
        unknown label or tag; with the file: another ending, unreadable, no rows.
    """
    read = _FILES.get(path.suffix.lower())
    if read is None:
        raise UserError(f"{path}: the name of a table must end in {', '.join(_FILES)}.")
    found = NativeFile()
    for where, cells in read(path):
        line = _Line(where, cells, ask.layout, task)
        annotation = _ANNOTATIONS[task.kind](line)
        try:
            task.render(annotation)
        except ValueError as error:
            line.fail(f"{error}.")
        id, group, instruction = (_row_column(line, name) for name in ROW_COLUMNS)
        found.records.append(Record(annotation, id, group, instruction))
    return not_empty(found, path, "rows")


def _row_column(line: _Line, name: str) -> str:
    if name not in line.layout.columns:
        return ""
    if name == "instruction":
        return line.text(name)
    spelled = _spelled(line.cell(name))
    if spelled is None:
        line.fail(f"{name} must be text or a number.")
    return spelled


def _spelled(cell: Any) -> str | None:
    """Returns a cell as text: true, false and whole numbers as JSON writes them; None for what is no single value."""
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, int) or (isinstance(cell, float) and cell.is_integer()):
        return str(int(cell))
    return None


def _ner(line: _Line) -> Any:
    assert isinstance(line.task, NerTask)
    tokens, tags = line.several("tokens", " "), line.several("tags", " ")
    if not tokens or len(tokens) != len(tags):
        line.fail(f"{len(tokens)} tokens and {len(tags)} tags; one tag for each token is expected.")
    read: list[str] = []
    for token, tag in zip(tokens, tags, strict=True):
        if not isinstance(token, str):
            line.fail(f"token {token!r} must be text.")
        tag = line.label(tag, line.task.tags, "tag")
        previous = read[-1] if read else None
        if (previous, tag) not in line.task.follows:
            line.fail(f"orphan '{tag}' at '{token}': it may only follow {tag.replace('I', 'B', 1)} or {tag}.")
        read.append(tag)
    return tuple(tokens), tuple(read)


def _labelled(line: _Line) -> Any:
    return line.text("input"), line.label(line.cell("label"), line.task.labels, "label")


def _nli(line: _Line) -> Any:
    # A line feed in a sentence would break the two labelled lines of the input.
    sentences = (" ".join(line.text(key).split("\n")) for key in ("premise", "hypothesis"))
    return (*sentences, line.label(line.cell("label"), line.task.labels, "label"))


def _labels(line: _Line) -> Any:
    cells = [cell for cell in line.several("labels") if _spelled(cell) not in ("", "none", "None")]
    labels = {line.label(cell, line.task.labels, "label") for cell in cells}
    return line.text("input"), tuple(label for label in line.task.labels if label in labels)


def _choice(line: _Line) -> Any:
    lettered = [letter for letter in OPTION_LETTERS if letter in line.layout.columns]
    if lettered:
        cells = [line.text(letter, may_be_empty=True) for letter in lettered]
        while cells and not cells[-1]:  # questions may have fewer options than the table has columns
            cells.pop()
    else:
        cells = line.several("options")
    most = len(line.task.labels)
    if not all(isinstance(cell, str) and cell.strip() for cell in cells) or not 2 <= len(cells) <= most:
        line.fail(f"2 to {most} options of text are expected, found {cells}.")
    options = tuple(" ".join(cell.split()) for cell in cells)
    letters = line.task.labels[: len(options)]
    form = line.layout.answer_form
    names = {
        "letter": letters,
        "index0": tuple(map(str, range(len(options)))),
        "index1": tuple(map(str, range(1, len(options) + 1))),
        "text": options,
    }[form]
    answer = " ".join((_spelled(line.cell("answer")) or "").split())
    if names.count(answer) != 1:
        line.fail(
            f"answer '{answer}' is not one of {', '.join(names)}; the definition's answer_form says how the answer is "
            f"given, here as {form}."
        )
    return line.text("question"), options, letters[names.index(answer)]


def _extract(line: _Line) -> Any:
    assert isinstance(line.task, ExtractTask)
    items = tuple(_items(line, key) for key in line.task.fields or ("items",))
    return line.text("input"), items


def _items(line: _Line, key: str) -> tuple[tuple[str, ...], ...]:
    cell = line.cell(key)
    single = isinstance(line.task, ExtractTask) and line.task.single
    plain = single and isinstance(cell, str) and not cell.strip().startswith("[")
    items = []
    for item in [cell] if plain else line.several(key):
        names = item if isinstance(item, list) else [item]
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            line.fail(f"{key}: an item is a name, or a list of a name and its synonyms; found {item!r}.")
        items.append(tuple(name.strip() for name in names))
    return tuple(items)


def _text(line: _Line) -> Any:
    return line.text("input", may_be_empty=True), line.text("output")


_ANNOTATIONS: dict[str, Callable[[_Line], Any]] = {
    "ner": _ner,
    "relation": _labelled,
    "label": _labelled,
    "nli": _nli,
    "labels": _labels,
    "choice": _choice,
    "extract": _extract,
    "text": _text,
}


def _tsv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    header: list[str] = []
    for number, line in numbered_lines(path):
        if not line:
            continue
        fields = fields_of(line)
        if not header:
            header = fields
            continue
        if len(fields) != len(header):
            raise UserError(f"{path}:{number}: {len(header)} columns are expected, found {len(fields)}.")
        yield f"{path}:{number}", dict(zip(header, fields, strict=True))


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from csv_records(path, ())


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(str(path)) as file:
            for batch in file.iter_batches():
                for cells in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", cells
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read as parquet: {error}") from error


_FILES: dict[str, Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]] = {
    ".tsv": _tsv,
    ".csv": _csv,
    ".json": json_objects,
    ".jsonl": json_objects,
    ".parquet": _parquet,
}

READERS = {"table": read_table}

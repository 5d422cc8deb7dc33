"""CSV files with a header, read record by record, each with the place it ends at."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from medtune_jax.errors import UserError
from medtune_jax.tasks.rows import read_text
from medtune_jax.tasks.text import clean_text


def csv_records(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields ("file:line of the record's end", {column: text}) of every record; other columns are there too.

    Texts have LF line ends and no white space at their edges.

    Raises:
      UserError: with file and line: columns missing, a record of another width, not CSV; with the file: not UTF-8.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline="\n"), strict=True)
    try:
        header = next(reader, [])
        missing = [name for name in columns if name not in header]
        if missing:
            found = ", ".join(header) or "no columns"
            raise UserError(f"{path}:1: no column {', '.join(missing)}; expected {', '.join(columns)}, found {found}.")
        for fields in reader:
            where = f"{path}:{reader.line_num}"
            if not fields:
                continue
            if len(fields) != len(header):
                raise UserError(f"{where}: {len(header)} columns are expected, found {len(fields)}.")
            yield where, {name: clean_text(field) for name, field in zip(header, fields, strict=True)}
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error}); is the file complete?") from error

"""The clinical snippets of Agrawal et al. (2022), as CSV: medication status and pronoun coreference."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from medtune_jax.data_prep.native import ANY, Ask, NativeFile, Record, not_empty
from medtune_jax.data_prep.readers.csv_files import csv_records
from medtune_jax.errors import UserError
from medtune_jax.tasks.base import Task

_STATUS = ("active", "discontinued", "neither")


def read_medication_status(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (snippet, the active, the discontinued and the other medications) of every record.

    Raises:
      UserError: with file and line: columns missing, not CSV, a cell that is no list; with the file: not UTF-8, no
        rows.
    """
    columns = ("snippet", *(f"{status}_medications" for status in _STATUS))
    found = NativeFile()
    for where, record in csv_records(path, columns):
        items = tuple(
            tuple((name,) for name in _names(record[column], column, where))
            for column in columns
            if column != "snippet"
        )
        found.records.append(Record((record["snippet"], items)))
    return not_empty(found, path, "records of snippet and medications")


def read_coreference(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (snippet, then `Pronoun: `; antecedent) of every record.

    Several antecedents are read as names of the same thing, any of which answers (OUR assumption).

    Raises:
      UserError: with file and line: columns missing, not CSV, no antecedent; with the file: not UTF-8, no rows.
    """
    found = NativeFile()
    for where, record in csv_records(path, ("snippet", "pronoun", "antecedent")):
        cell = record["antecedent"]
        names = _names(cell, "antecedent", where) if cell.startswith("[") else (cell,)
        if not any(names):
            raise UserError(f"{where}: no antecedent.")
        input = f"{record['snippet']}\nPronoun: {record['pronoun']}"
        found.records.append(Record((input, ((names,),))))
    return not_empty(found, path, "records of snippet, pronoun and antecedent")


def _names(cell: str, column: str, where: str) -> tuple[str, ...]:
    """Returns the strings of a list written as JSON or as python writes it, repeats left out."""
    try:
        value = json.loads(cell)
    except json.JSONDecodeError:
        try:
            value = ast.literal_eval(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            value = None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{where}: '{cell}' in column '{column}' is no list of strings, such as [\"aspirin\"].")
    return tuple(dict.fromkeys(name.strip() for name in value if name.strip()))


READERS = {"medication_status": read_medication_status, "coreference": read_coreference}

"""Conversations and the notes written of them: MTS-Dialog and ACI-BENCH, as CSV."""

from __future__ import annotations

from pathlib import Path

from medtune_jax.data_prep.native import ANY, Ask, NativeFile, Record, not_empty
from medtune_jax.data_prep.readers.csv_files import csv_records
from medtune_jax.tasks.base import Task


def read_mts_dialog(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (`Section: ` with the section's code, then the conversation; section text) of every record.

    The code is given, not asked for: what is written is the text of that section.

    Raises:
      UserError: with file and line: columns missing, a record of another width, not CSV; with the file: not UTF-8, no
        rows.
    """
    found = NativeFile()
    for _, record in csv_records(path, ("ID", "section_header", "section_text", "dialogue")):
        section, note = record["section_header"], record["section_text"]
        if not note:
            found.dropped["empty section_text"] += 1
            continue
        input = f"Section: {section}\n{record['dialogue']}"
        found.records.append(Record((input, note), id=record["ID"], meta={"section": section}))
    return not_empty(found, path, "records of dialogue and section_text")


def read_aci_bench(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (conversation, whole note) of every record; meta holds its sub-corpus (`dataset`).

    Raises:
      UserError: as `read_mts_dialog`.
    """
    found = NativeFile()
    for _, record in csv_records(path, ("dataset", "encounter_id", "dialogue", "note")):
        if not record["note"]:
            found.dropped["empty note"] += 1
            continue
        name = record["encounter_id"]
        annotation = (record["dialogue"], record["note"])
        found.records.append(Record(annotation, id=name, group=name, meta={"dataset": record["dataset"]}))
    return not_empty(found, path, "records of dialogue and note")


READERS = {"mts_dialog": read_mts_dialog, "aci_bench": read_aci_bench}

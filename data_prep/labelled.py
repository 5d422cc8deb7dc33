"""Native files with one label per example: relation TSV and inference JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from medtune_jax.data_prep.native import ANY, Ask, NativeFile, Record, not_empty, numbered_lines
from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.tasks.base import Task

_HEADER = "sentence\tlabel"
_NLI_KEYS = ("sentence1", "sentence2", "gold_label")
NO_CONSENSUS = "-"  # the gold_label of SNLI-style files whose annotators did not agree


def read_relation_tsv(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (sentence, label) of every `sentence<TAB>label` line; a first line of just these two words is a header.

    Raises:
      UserError: with file and line: not two columns, empty sentence, unknown label; with the file: not UTF-8, no rows.
    """
    found = NativeFile()
    for number, line in numbered_lines(path):
        if not line or (number == 1 and line == _HEADER):
            continue
        columns = line.split("\t")
        if len(columns) != 2 or not columns[0].strip():
            raise UserError(f"{path}:{number}: sentence<TAB>label is expected, found {len(columns)} column(s).")
        found.records.append(Record((columns[0], _label(columns[1], task, f"{path}:{number}"))))
    return not_empty(found, path, "sentence<TAB>label lines")


def read_nli_jsonl(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (sentence1, sentence2, label) of every JSON line; labels in any case, `-` (no consensus) dropped.

    The id is the `pairID`, where there is one. Line feeds inside a sentence become spaces: they would break the two
    labelled lines of the input.

    Raises:
      UserError: with file and line: not a JSON object, a key missing or not a string, unknown label; with the file:
        not UTF-8, no rows.
    """
    found = NativeFile()
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON ({error.msg}); one object per line is expected.") from error
        for key in _NLI_KEYS:
            if not isinstance(record, dict) or not isinstance(record.get(key), str):
                raise UserError(f"{where}: no string '{key}'; expected an object with {', '.join(_NLI_KEYS)}.")
        premise, hypothesis, label = (record[key] for key in _NLI_KEYS)
        if label == NO_CONSENSUS:
            found.dropped["gold_label is '-': no consensus"] += 1
            continue
        sentences = (" ".join(premise.split("\n")), " ".join(hypothesis.split("\n")))
        id = record.get("pairID")
        found.records.append(Record((*sentences, _label(label, task, where)), id=id if isinstance(id, str) else ""))
    return not_empty(found, path, f"JSON lines with {', '.join(_NLI_KEYS)}")


def _label(text: str, task: Task, where: str) -> str:
    for label in task.labels:
        if text.strip().casefold() == label.casefold():
            return label
    raise UserError(f"{where}: unknown label '{text}'.{did_you_mean(text, task.labels)}")


READERS = {"relation_tsv": read_relation_tsv, "nli_jsonl": read_nli_jsonl}

"""Inference between two sentences as JSON lines, in the form of SNLI and MedNLI."""

from __future__ import annotations

import hashlib
from pathlib import Path

from medtune_jax.data_prep.native import ANY, Ask, NativeFile, Record, label_of, not_empty
from medtune_jax.data_prep.readers.json_files import json_objects, text_at
from medtune_jax.errors import UserError
from medtune_jax.tasks.base import Task

_EXPECTED = "an object with sentence1, sentence2, gold_label"
NO_CONSENSUS = "-"  # the gold_label of SNLI-style files whose annotators did not agree


def read_nli_jsonl(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (sentence1, sentence2, label) of every JSON line; labels in any case, `-` (no consensus) dropped.

    The id is the `pairID`, where there is one. The group is a hash of sentence1 (16 hexadecimal digits): MedNLI has
    three hypotheses of each premise and no name for it, and rows of one premise are not independent. Line feeds inside
    a sentence become spaces: they would break the two labelled lines of the input.

    Raises:
      UserError: with file and line: not a JSON object, a key missing or not a string, an empty sentence, unknown label;
        with the file: not UTF-8, no rows.
    """
    found = NativeFile()
    for where, item in json_objects(path):
        texts = (text_at(item, key, where, _EXPECTED) for key in ("sentence1", "sentence2", "gold_label"))
        premise, hypothesis, label = (" ".join(text.split("\n")) for text in texts)
        if label == NO_CONSENSUS:
            found.dropped["gold_label is '-': no consensus"] += 1
            continue
        if not premise or not hypothesis:
            raise UserError(f"{where}: {'sentence2' if premise else 'sentence1'} is empty.")
        id = text_at(item, "pairID", where, "a text") if isinstance(item.get("pairID"), str) else ""
        group = hashlib.blake2b(premise.encode(), digest_size=8).hexdigest()
        found.records.append(Record((premise, hypothesis, label_of(label, task.labels, where)), id=id, group=group))
    return not_empty(found, path, "JSON lines with sentence1, sentence2, gold_label")


READERS = {"nli_jsonl": read_nli_jsonl}

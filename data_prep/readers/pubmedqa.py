"""PubMedQA's expert-labelled part: ori_pqal.json, split as the official script does."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtune_jax.data_prep.native import ANY, Ask, NativeFile, Record, label_of
from medtune_jax.data_prep.readers.json_files import json_object, text_at, whole
from medtune_jax.errors import UserError
from medtune_jax.tasks.base import Task

TEST_IDS = "test_ground_truth.json"
_EXPECTED = "QUESTION, CONTEXTS, final_decision"
_LABELS = ("yes", "no", "maybe")  # in the script's order: one generator serves them one after the other


def read_with_context(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (abstract without its conclusion, then the question; label) of the split's articles.

    The input is the prompt of lm-evaluation-harness's task pubmedqa less its last line "Answer:" (the answer's place
    is the template's here): `Abstract: `, the CONTEXTS joined by line feeds as they are, without the section labels,
    then `Question: ` on a line of its own.

    Raises:
      UserError: with the file and the PMID: a key missing, unknown label; with the file: not JSON, not UTF-8, not the
        distributed pair of files.
    """
    return _read(path, task, ask, with_context=True)


def read_question_only(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (question, label) of the split's articles.

    Raises:
      UserError: as `read_with_context`.
    """
    return _read(path, task, ask, with_context=False)


def official_split(decisions: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns the PMIDs of train, validation (fold 0) and test, as pubmedqa's preprocess/split_dataset.py draws them.

    Its rule: python's generator with seed 0 halves the set label by label into cross-validation and test, and goes on
    to cut the first half, again label by label, into ten folds, levelled by moving one random article of each to the
    last. That the test half equals the published test_ground_truth.json, in its order, is checked at every reading;
    fold 0 comes from the same generator, and begins as in a copy of the script's own output.

    Args:
      decisions: PMID -> yes, no or maybe, in the file's order.
    """
    generator = random.Random(0)
    first_half, test = _parts(list(decisions), decisions, 2, generator)
    folds = _parts(first_half, decisions, 10, generator)
    return {"train": [pmid for fold in folds[1:] for pmid in fold], "validation": folds[0], "test": test}


def _parts(pmids: Sequence[str], decisions: Mapping[str, str], count: int, generator: random.Random) -> list[list[str]]:
    parts: list[list[str]] = [[] for _ in range(count)]
    for label in _LABELS:
        same = [pmid for pmid in pmids if decisions[pmid] == label]
        generator.shuffle(same)
        size = math.ceil(len(same) / count)
        for number, part in enumerate(parts):
            part += same[number * size : (number + 1) * size]
    if len(parts[-1]) != len(parts[0]):
        for part in parts[:-1]:
            moved = generator.choice(part)
            part.remove(moved)
            parts[-1].append(moved)
    return parts


def _read(path: Path, task: Task, ask: Ask, with_context: bool) -> NativeFile:
    articles = json_object(path)
    decisions = {pmid: _decision(article, task, f"{path}, PMID {pmid}") for pmid, article in articles.items()}
    official = json_object(path.with_name(TEST_IDS))
    pmids = official_split(decisions)
    if pmids["test"] != list(official):
        raise UserError(
            f"{path} and {TEST_IDS} are not the distributed pair: the official split of the first does not give the "
            "test PMIDs of the second. Take both from https://github.com/pubmedqa/pubmedqa, folder data, unchanged."
        )
    for pmid, label in official.items():
        if decisions[pmid] != label:
            raise UserError(f"{path}, PMID {pmid}: final_decision '{decisions[pmid]}', but '{label}' in {TEST_IDS}.")
    found = NativeFile()
    for pmid in pmids[ask.split]:
        where, article = f"{path}, PMID {pmid}", articles[pmid]
        input = text_at(article, "QUESTION", where, _EXPECTED)
        if with_context:
            contexts = article.get("CONTEXTS")
            if not isinstance(contexts, list) or not all(isinstance(context, str) for context in contexts):
                raise UserError(f"{where}: no list of strings 'CONTEXTS'; expected {_EXPECTED}.")
            abstract = whole("\n".join(contexts))
            input = f"Abstract: {abstract}\nQuestion: {input}"
        found.records.append(Record((input, decisions[pmid]), id=pmid, group=pmid))
    return found


def _decision(article: Any, task: Task, where: str) -> str:
    if not isinstance(article, dict):
        raise UserError(f"{where}: an object with {_EXPECTED} is expected, found {type(article).__name__}.")
    return label_of(text_at(article, "final_decision", where, _EXPECTED), task.labels, where, "final_decision")


READERS = {"pubmedqa": read_with_context, "pubmedqa_question": read_question_only}

"""What holds for the scores of every registered source, on annotations made up for its task."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from evaluate_samples import prediction

from medtune_jax.evaluate.score import score
from medtune_jax.tasks.registry import SOURCES, get_source

SEEDS = os.environ.get("MEDTUNE_HASH_SEEDS", "0 1").split()
LONG = "The patient was seen on the ward and sent home with a new drug ."


def _ner(task):
    types = task.labels or ("",)
    suffixes = [f"-{one}" if one else "" for one in types]
    for number, suffix in enumerate(suffixes):
        yield ("a", "b", ":", f"c{number}", "b"), ("O", f"B{suffix}", f"I{suffix}", "O", f"B{suffix}")
    yield ("none", "here"), ("O", "O")


def _extract(task):
    for number in range(1, 2 if task.single else 4):
        items = tuple((f"drug {number} {item}", f"brand {number} {item}") for item in range(number))
        yield f"{LONG} {number}", (items, *((),) * (len(task.fields) - 1))
    for field in range(len(task.fields)):
        yield LONG, tuple(((f"drug {field}",),) if at == field else () for at in range(len(task.fields)))


MADE_UP = {
    "ner": _ner,
    "relation": lambda task: ((f"{LONG} {label}", label) for label in task.labels),
    "label": lambda task: ((f"{LONG} {label}", label) for label in task.labels),
    "nli": lambda task: ((LONG, f"It is {label}", label) for label in task.labels),
    "labels": lambda task: [(LONG, task.labels[at : at + 2]) for at in range(len(task.labels))] + [(LONG, ())],
    "choice": lambda task: [(f"{LONG} Why ?", ("this", "that", "both"), letter) for letter in "ABC"],
    "extract": _extract,
    "text": lambda task: [(LONG, f"{LONG} {LONG} {number}") for number in range(3)],
}


def _perfect(name):
    task = get_source(name).task
    rows = []
    for row, annotation in enumerate(MADE_UP[task.kind](task)):
        meta = json.dumps(facts) if (facts := task.facts(annotation)) else ""
        rows.append(replace(prediction(name, *task.render(annotation), row), meta=meta, group=f"document {row // 2}"))
    return rows


@pytest.mark.parametrize("name", list(SOURCES))
def test_perfect_answers_are_exactly_one_in_every_metric(name):
    entry = score(_perfect(name), resamples=5).document["sources"][name]
    assert set(entry["metrics"].values()) == {1.0}, entry["metrics"]
    if entry["documents"]:
        assert set(entry["documents"]["metrics"].values()) == {1.0}


@pytest.mark.parametrize("name", list(SOURCES))
def test_a_blank_answer_changes_its_own_row_only_and_earns_nothing(name):
    rows = _perfect(name)
    before = score(rows, resamples=5)
    for index, row in enumerate(rows):
        after = score([*rows[:index], replace(row, generated=""), *rows[index + 1 :]], resamples=5)
        others = [at for at in range(len(rows)) if at != index]
        table = after.tables[name]
        np.testing.assert_array_equal(table.statistics[others], before.tables[name].statistics[others])
        assert table.status[index] == "unparsable"
    blank = score([replace(row, generated="") for row in rows], resamples=5).document["sources"][name]
    assert set(blank["metrics"].values()) == {0.0}


_SCORE = """
import sys
from pathlib import Path
from medtune_jax.evaluate.predictions import read_predictions
from medtune_jax.evaluate.score import score, write_scores
for protocol in ("aligned", "legacy_medtuned"):
    scores = score(read_predictions(sys.argv[1]), protocol=protocol, resamples=20)
    write_scores(Path(sys.argv[2]) / protocol, scores)
"""


def test_scores_are_the_same_bytes_under_any_hash_seed(tmp_path):
    rows = [row for name in SOURCES for row in _perfect(name)]
    spoilt = [replace(row, generated=row.output[::2]) if at % 3 else row for at, row in enumerate(rows)]
    keys = ("source", "input", "output", "meta", "group", "generated")
    lines = [json.dumps({key: getattr(one, key) for key in keys}) + "\n" for one in spoilt]
    (tmp_path / "predictions.jsonl").write_text("".join(lines))
    found = []
    for seed in SEEDS:
        out = tmp_path / seed
        out.mkdir()
        words = [sys.executable, "-c", _SCORE, str(tmp_path), str(out)]
        subprocess.run(words, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        found.append({str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()})
    assert len(found[0]) == 10
    assert all(one == found[0] for one in found)

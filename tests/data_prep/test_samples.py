"""The invented corpora: what their held-out rows promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medtune_jax.data_prep import samples
from medtune_jax.data_prep.prepare import prepare
from medtune_jax.tasks.registry import get_source
from medtune_jax.tasks.rows import read_rows

SOURCES = ("sample-disease", "sample-relation", "sample-nli")
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    samples.write_samples(folder)
    return folder


@pytest.fixture(scope="module")
def rows(raw: Path) -> Path:
    prepare(raw.parent / "rows", raw_dir=raw, sources=SOURCES)
    return raw.parent / "rows"


def mentions(path: Path) -> list[str]:
    found: list[list[str]] = []
    for line in path.read_text().splitlines():
        token, _, tag = line.partition("\t")
        if tag == "B":
            found.append([token])
        elif tag == "I":
            found[-1].append(token)
    return [" ".join(words) for words in found]


def pairs(path: Path) -> list[tuple[str, ...]]:
    """Returns the (disease, drug) pair of each row: the only words that end in these suffixes."""
    suffixes = (*samples.DISEASE_SUFFIXES, *samples.DRUG_SUFFIXES)
    found = []
    for line in path.read_text().splitlines():
        text = json.loads(line)["sentence1"] if path.suffix == ".jsonl" else line.partition("\t")[0]
        found.append(tuple(sorted(word for word in text.split() if word.endswith(suffixes))))
    return found


def test_at_least_half_of_the_held_out_mentions_never_occur_in_training(raw):
    folder = raw / "sample-disease"
    seen = set(mentions(folder / "train.tsv"))
    for split in ("devel", "test"):
        held_out = mentions(folder / f"{split}.tsv")
        assert held_out and sum(mention not in seen for mention in held_out) >= len(held_out) / 2


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("sample-relation/train.tsv", "sample-relation/test.tsv"), ("sample-nli/train.jsonl", "sample-nli/test.jsonl")],
)
def test_at_least_half_of_the_held_out_pairs_never_occur_in_training(raw, train, held_out):
    seen, asked = set(pairs(raw / train)), pairs(raw / held_out)
    assert all(len(pair) == 2 for pair in asked)
    assert sum(pair not in seen for pair in asked) >= len(asked) / 2


@pytest.mark.parametrize("source", SOURCES)
def test_no_constant_answer_scores_above_a_half(rows, source):
    task = get_source(source).task
    test = read_rows(rows, "test", [source])
    answers = {row.output for row in test} if source != "sample-disease" else set()
    train = [(row.input, row.output) for row in read_rows(rows, "train", [source])]
    constant = task.baselines(train)["constant"]
    for answer in [constant, *(lambda _, text=text: text for text in sorted(answers))]:
        statistics = []
        for row in test:
            gold, answered = task.parse(row.output, row.input), task.parse(answer(row.input), row.input)
            statistics.append(task.statistics(gold.annotation, answered, row.input))
        totals = {key: np.asarray(sum(row[key] for row in statistics)) for key in statistics[0]}
        assert task.metrics(totals)[task.metric] <= 0.5


def test_a_premise_that_denies_turns_the_answer(raw):
    answers: dict[tuple[bool, str], set[str]] = {}
    for line in (raw / "sample-nli" / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        denied = row["sentence1"].startswith("No ") or " has no " in row["sentence1"]
        answers.setdefault((denied, row["sentence2"].split(" ", 1)[1]), set()).add(row["gold_label"])
    assert answers[False, "is present ."] == answers[True, "is absent ."] == {"entailment"}
    assert answers[True, "is present ."] == answers[False, "is absent ."] == {"contradiction"}


def test_one_seed_gives_the_same_bytes_under_any_hash_seed(raw, tmp_path):
    code = "import pathlib, sys; from medtune_jax.data_prep.samples import *; write_samples(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    contents = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (raw, tmp_path)
    ]
    assert contents[0] == contents[1] and len(contents[0]) == 9


def test_another_seed_gives_other_rows(raw, tmp_path):
    samples.write_samples(tmp_path, seed=1)
    name = "sample-relation/test.tsv"
    assert (raw / name).read_bytes() != (tmp_path / name).read_bytes()

"""What must hold on every row of the real GAD and Hallmarks of Cancer corpora."""

from collections import Counter

import numpy as np
import pytest

from medtune_jax.data_prep.native import Ask
from medtune_jax.data_prep.readers import READERS
from medtune_jax.tasks.registry import SOURCES
from medtune_jax.tasks.rows import Row, gold_sha256

NAMES = ("GAD", "hoc", "hoc-document")


@pytest.fixture(scope="module")
def records(shared_data):
    """(source, split) -> records."""
    found = {}
    for name in NAMES:
        source = SOURCES[name]
        layout = source.layouts[0]
        for split, file in layout.files.items():
            path = shared_data / "raw" / (source.folder or name) / file
            found[name, split] = READERS[layout.format](path, source.task, Ask(split, layout)).records
    return found


def summed(task, golds, texts):
    """Returns the statistics of answers, summed."""
    totals = Counter()
    for gold, text in zip(golds, texts, strict=True):
        totals.update(task.statistics(gold, task.parse(text, gold[0]), gold[0]))
    return {key: np.array(value) for key, value in totals.items()}


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_as_many_as_published_and_hashes_are_registered(records, name):
    source = SOURCES[name]
    for split, counts in source.expected.items():
        rendered = [source.task.render(record.annotation) for record in records[name, split]]
        assert len(rendered) == counts["rows"]
        assert source.splits[gold_sha256(Row("", input, output, name) for input, output in rendered)] == split


def test_legacy_rows_of_gad_are_known_as_such_and_compared_with_no_published_split(shared_data):
    source = SOURCES["GAD"]
    for split in ("train", "test"):
        ask = Ask(split, source.layouts[0], "legacy")
        records = READERS["gad_tsv"](shared_data / "raw" / "GAD" / f"{split}.tsv", source.task, ask).records
        rows = [Row("", *source.task.render(record.annotation), "GAD") for record in records]
        assert source.splits[gold_sha256(rows)] == f"{split} (legacy polarity)"
    assert not any("legacy" in figure.split for figure in source.published)


def test_gad_holds_2801_associations_of_5330_and_281_in_test(records):
    counts = {split: Counter(record.annotation[1] for record in records["GAD", split]) for split in ("train", "test")}
    assert counts["test"] == {"Positive": 281, "Negative": 253}
    assert counts["train"] + counts["test"] == {"Positive": 2801, "Negative": 2529}
    assert records["GAD", "validation"] == []


def test_hallmarks_of_the_training_sentences_are_those_of_the_papers(records):
    labels = Counter(label for record in records["hoc", "train"] for label in record.annotation[1] or ("None",))
    by_abbreviation = {label.rpartition("(")[2].rstrip(")"): count for label, count in labels.items()}
    assert by_abbreviation == {
        **{"None": 9034, "PS": 674, "CD": 602, "GI": 523, "IM": 448, "TPI": 375},
        **{"GS": 268, "A": 238, "RI": 219, "ID": 185, "CE": 136},
    }


def test_documents_are_the_merged_sentences(records):
    for split in ("train", "validation", "test"):
        by_group: dict[str, list] = {}
        for record in records["hoc", split]:
            by_group.setdefault(record.group, []).append(record.annotation)
        merged = {group: SOURCES["hoc"].task.merge(parts)[1] for group, parts in by_group.items()}
        assert merged == {record.group: record.annotation[1] for record in records["hoc-document", split]}
    assert sum(not labels for labels in merged.values()) == 53


@pytest.mark.parametrize("name", NAMES)
def test_every_row_round_trips_and_a_perfect_answer_is_exactly_one(records, name):
    task = SOURCES[name].task
    for split in ("train", "validation", "test"):
        golds = [record.annotation for record in records[name, split]]
        texts = [task.render(gold)[1] for gold in golds]
        for gold, text in zip(golds, texts, strict=True):
            parsed = task.parse(text, gold[0])
            assert parsed.annotation == gold and parsed.status == "exact"
        if golds:
            scores = task.metrics(summed(task, golds, texts))
            assert {metric: float(value) for metric, value in scores.items()} == dict.fromkeys(scores, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_blanking_a_row_changes_only_its_own_statistics_and_never_earns_credit(records, name):
    task = SOURCES[name].task
    for record in records[name, "test"][:40]:
        gold = record.annotation
        right = task.metrics(summed(task, [gold], [task.render(gold)[1]]))
        blank = task.metrics(summed(task, [gold], [""]))
        assert all(float(value) == 0 for value in blank.values())
        assert float(right["accuracy"]) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_gold_answer_is_among_the_allowed_ones(records, name):
    task = SOURCES[name].task
    for record in records[name, "test"]:
        input, output = task.render(record.annotation)
        allowed = task.allowed(input)
        assert allowed is None or allowed.spans(output) is not None

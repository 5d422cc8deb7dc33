"""What must hold on every row of the four real corpora."""

import numpy as np
import pytest

from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.registry import SOURCES
from medtune_jax.tasks.rows import Row, gold_sha256

TASK = NerTask()
# shared/data/README.md: sentences and mentions of train, devel, test.
SIZES = {
    "NCBI-disease": ((5424, 5134), (923, 787), (940, 960)),
    "BC5CDR-disease": ((4560, 4182), (4581, 4246), (4797, 4424)),
    "BC5CDR-chem": ((4560, 5203), (4581, 5347), (4797, 5385)),
    "JNLPBA": ((14690, 32178), (3856, 8575), (3856, 6241)),
}


def statistics(gold, text):
    input = " ".join(gold[0])
    return TASK.statistics(gold, TASK.parse(text, input), input)


def f1(rows):
    return TASK.metrics({key: np.array(sum(row[key] for row in rows)) for key in rows[0]})["f1"]


@pytest.fixture(scope="module")
def ncbi_test(corpora):
    return corpora["NCBI-disease", "test"]


def test_sentences_and_mentions_are_those_of_the_corpora(corpora):
    found = {
        name: tuple(
            (len(rows), sum(tag == "B" for _, tags in rows for tag in tags))
            for rows in (corpora[name, split] for split in ("train", "validation", "test"))
        )
        for name in SIZES
    }
    assert found == SIZES


@pytest.mark.parametrize("name", SIZES)
def test_every_row_round_trips_and_a_perfect_answer_is_exactly_one(corpora, name):
    for split in ("train", "validation", "test"):
        rows = []
        for gold in corpora[name, split]:
            input, output = TASK.render(gold)
            parsed = TASK.parse(output, input)
            assert parsed.annotation == gold and parsed.status == "exact"
            rows.append(TASK.statistics(gold, parsed, input))
        scores = TASK.metrics({key: np.array(sum(row[key] for row in rows)) for key in rows[0]})
        assert {metric: float(value) for metric, value in scores.items()} == dict.fromkeys(scores, 1.0)


@pytest.mark.parametrize("name", SIZES)
def test_rendered_splits_have_the_registered_gold_hash(corpora, name):
    for split in ("train", "validation", "test"):
        rendered = (TASK.render(gold) for gold in corpora[name, split])
        assert SOURCES[name].splits[gold_sha256(Row("", input, output, name) for input, output in rendered)] == split


def test_allowed_contains_every_gold_output(ncbi_test):
    for gold in ncbi_test:
        input, output = TASK.render(gold)
        allowed = TASK.allowed(input)
        assert allowed.spans(output) is not None
        assert all(allowed.permits(*pair) for pair in zip((None, *gold[1]), gold[1], strict=False))


def test_blanking_a_row_changes_only_its_own_statistics(ncbi_test):
    texts = [TASK.render(gold)[1] for gold in ncbi_test[:50]]
    before = [statistics(gold, text) for gold, text in zip(ncbi_test, texts, strict=False)]
    for blank in range(0, 50, 7):
        after = [
            statistics(g, "" if row == blank else t) for row, (g, t) in enumerate(zip(ncbi_test, texts, strict=False))
        ]
        assert [row for row in range(50) if before[row] != after[row]] == [blank]


def test_reversing_lines_lowers_the_corpus_score(ncbi_test):
    backwards = [statistics(gold, "\n".join(TASK.render(gold)[1].split("\n")[::-1])) for gold in ncbi_test]
    assert f1(backwards) < 0.2


def test_dropping_or_shifting_an_entity_line_lowers_that_sentence(ncbi_test):
    for gold in [gold for gold in ncbi_test if "B" in gold[1]][:200]:
        lines = TASK.render(gold)[1].split("\n")
        at = gold[1].index("B")
        dropped = lines[:at] + lines[at + 1 :]
        assert f1([statistics(gold, "\n".join(dropped))]) < 1
        tags = list(gold[1])
        shifted = [f"{token} : {tag}" for token, tag in zip(gold[0], tags[-1:] + tags[:-1], strict=True)]
        assert f1([statistics(gold, "\n".join(shifted))]) < 1


def test_a_train_dictionary_stands_between_the_constant_and_a_perfect_answer(corpora, ncbi_test):
    answers = TASK.baselines([TASK.render(gold) for gold in corpora["NCBI-disease", "train"]])
    scores = {name: f1([statistics(g, answer(" ".join(g[0]))) for g in ncbi_test]) for name, answer in answers.items()}
    assert scores["constant"] == 0
    assert 0.5 < scores["train_dictionary"] < 0.9

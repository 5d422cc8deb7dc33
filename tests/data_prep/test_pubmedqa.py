"""PubMedQA: the official split, two inputs, the defects of its two files."""

import json
from collections import Counter

import pytest

from medtune_jax.data_prep.native import Ask
from medtune_jax.data_prep.readers.pubmedqa import official_split, read_question_only, read_with_context
from medtune_jax.errors import UserError
from medtune_jax.tasks.classification import LabelTask
from medtune_jax.tasks.source import Layout

TASK = LabelTask("label", ("yes", "no", "maybe"))
LAYOUT = Layout("pubmedqa", {}, also=("test_ground_truth.json",))
DECISIONS = {str(100 + i): label for i, label in enumerate(["yes"] * 60 + ["no"] * 30 + ["maybe"] * 10)}


@pytest.fixture
def files(tmp_path):
    """Writes a made-up pair of files, changed by `change(articles, test decisions)`; returns the first one's path."""

    def writer(change=lambda articles, test: None):
        articles = {
            pmid: {
                "QUESTION": f"Is {pmid} so?",
                "CONTEXTS": ["First\npart.  So.", "Second."],
                "LABELS": ["AIM", "RESULTS"],
                "LONG_ANSWER": "Indeed it is.",
                "final_decision": label,
            }
            for pmid, label in DECISIONS.items()
        }
        test = {pmid: DECISIONS[pmid] for pmid in official_split(DECISIONS)["test"]}
        change(articles, test)
        (tmp_path / "test_ground_truth.json").write_text(json.dumps(test))
        (tmp_path / "ori_pqal.json").write_text(json.dumps(articles, indent=1))
        return tmp_path / "ori_pqal.json"

    return writer


def read(path, split="test", reader=read_with_context):
    return reader(path, TASK, Ask(split, LAYOUT))


def test_the_split_halves_and_folds_label_by_label_and_loses_nothing():
    split = official_split(DECISIONS)
    assert sorted(pmid for pmids in split.values() for pmid in pmids) == sorted(DECISIONS)
    assert Counter(DECISIONS[pmid] for pmid in split["test"]) == {"yes": 30, "no": 15, "maybe": 5}
    assert official_split(DECISIONS) == split


def test_the_abstract_comes_as_it_is_without_its_conclusion(files):
    record = read(files()).records[0]
    pmid = record.id
    assert record.annotation == (f"Abstract: First\npart.  So.\nSecond.\nQuestion: Is {pmid} so?", DECISIONS[pmid])
    assert record.group == pmid


def test_the_question_may_stand_alone(files):
    record = read(files(), reader=read_question_only).records[0]
    assert record.annotation == (f"Is {record.id} so?", DECISIONS[record.id])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a, t: a["100"].pop("QUESTION"), r"PMID 100: no string 'QUESTION'; expected QUESTION, CONTEXTS"),
        (lambda a, t: a["100"].update(CONTEXTS="one"), r"PMID 100: no list of strings 'CONTEXTS'"),
        (lambda a, t: a["100"].update(final_decision="ja"), r"PMID 100: unknown final_decision 'ja'\. Known: maybe"),
        (lambda a, t: a.update({"100": []}), r"PMID 100: an object with QUESTION, .* found list"),
        (lambda a, t: t.pop(next(iter(t))), r"are not the distributed pair: .* does not give the test PMIDs"),
        (lambda a, t: t.update({next(iter(t)): "maybe"}), r"final_decision 'yes', but 'maybe' in test_ground_truth"),
        (lambda a, t: a.pop("101"), r"are not the distributed pair"),
    ],
)
def test_bad_articles_are_named(files, change, said):
    path = files(change)
    with pytest.raises(UserError, match=said):
        for split in ("train", "validation", "test"):
            read(path, split)


def test_a_half_written_file_is_named_with_its_line(files):
    path = files()
    path.write_text(path.read_text()[:200])
    with pytest.raises(UserError, match=r"ori_pqal\.json:\d+: not JSON"):
        read(path)

"""What must hold on every row of the real question, dialogue and consultation sets."""

import json
import random

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from medtune_jax.data_prep.native import Ask
from medtune_jax.data_prep.readers import READERS
from medtune_jax.tasks.registry import SOURCES
from medtune_jax.tasks.rows import Row, gold_sha256

# facts/papers.md 1.5 and shared/data/README.md: (layout, split) -> rows of the files at hand.
SIZES = {
    "PubMedQA": {(0, "train"): 450, (0, "validation"): 50, (0, "test"): 500},
    "PubMedQA-no-context": {(0, "train"): 450, (0, "validation"): 50, (0, "test"): 500},
    "MedQA": {(0, "validation"): 1272},
    "MedMCQA": {(0, "validation"): 4183},
    "Conv2note": {(0, "train"): 1201, (0, "validation"): 100, (0, "test"): 200, (0, "test2"): 200},
    "chatdoctor": {(1, "train"): 5452},
}


@pytest.fixture(scope="module")
def records(shared_data):
    """source -> {(layout, split): records}."""
    found = {}
    for name, sizes in SIZES.items():
        source = SOURCES[name]
        found[name] = {}
        for number, split in sizes:
            layout = source.layouts[number]
            path = shared_data / "raw" / (source.folder or name) / layout.files[split]
            native = READERS[layout.format](path, source.task, Ask(split, layout))
            assert not native.dropped
            found[name][number, split] = native.records
    return found


def totals(task, annotations, answers=None):
    sums = {}
    for position, annotation in enumerate(annotations):
        input, output = task.render(annotation)
        text = output if answers is None else answers[position]
        for key, value in task.statistics(annotation, task.parse(text, input), input).items():
            sums[key] = sums.get(key, 0) + value
    return {key: np.array(value) for key, value in sums.items()}


def test_the_rows_are_as_many_as_published(records):
    assert {name: {key: len(found) for key, found in splits.items()} for name, splits in records.items()} == SIZES


@pytest.mark.parametrize("name", SIZES)
def test_every_row_round_trips_exactly(records, name):
    task = SOURCES[name].task
    for record in (record for found in records[name].values() for record in found):
        input, output = task.render(record.annotation)
        gold = task.gold(output, input, task.facts(record.annotation))
        assert gold.annotation == record.annotation and gold.status == "exact"
        assert task.parse(output, input).annotation == record.annotation


@pytest.mark.parametrize("name", SIZES)
def test_rendered_splits_have_the_registered_gold_hash(records, name):
    source = SOURCES[name]
    for (number, split), found in records[name].items():
        rows = [Row("", *source.task.render(record.annotation), name) for record in found]
        official = "chatdoctor5k" if (name, number) == ("chatdoctor", 1) else split
        assert source.splits[gold_sha256(rows)] == official


@pytest.mark.parametrize("name", [name for name in SIZES if name != "chatdoctor"])
def test_perfect_answers_score_exactly_one(records, name):
    """But for rouge2, which has nothing to count in an answer of one word."""
    task = SOURCES[name].task
    for (_, split), found in records[name].items():
        if split == "train":
            continue
        scores = task.metrics(totals(task, [record.annotation for record in found]))
        assert {metric for metric, value in scores.items() if value != 1} <= {"rouge2"}


def test_pubmedqa_scores_are_those_of_scikit_learn(records):
    annotations = [record.annotation for record in records["PubMedQA"][0, "test"]]
    task = SOURCES["PubMedQA"].task
    gold = [label for _, label in annotations]
    for seed in range(5):
        answers = random.Random(seed).choices(task.labels, weights=(5, 3, 1), k=len(gold))
        scores = task.metrics(totals(task, annotations, answers))
        assert scores["accuracy"] == pytest.approx(accuracy_score(gold, answers), abs=1e-12)
        assert scores["macro_f1"] == pytest.approx(f1_score(gold, answers, average="macro"), abs=1e-12)


def test_pubmedqa_inputs_do_not_hold_the_conclusion(records, shared_data):
    articles = json.loads((shared_data / "raw" / "PubMedQA" / "ori_pqal.json").read_text())
    splits = records["PubMedQA"]
    assert not any(articles[r.id]["LONG_ANSWER"] in r.annotation[0] for found in splits.values() for r in found)
    ids = [r.id for found in splits.values() for r in found]
    assert len(ids) == len({*ids}) == 1000 and {*ids} == {*articles}


def test_pubmedqa_inputs_are_the_harness_prompt_less_its_last_line(records, shared_data):
    """Its doc_to_text, as in lm_eval/tasks/pubmedqa/preprocess_pubmedqa.py."""
    articles = json.loads((shared_data / "raw" / "PubMedQA" / "ori_pqal.json").read_text())
    for record in (record for found in records["PubMedQA"].values() for record in found):
        article = articles[record.id]
        contexts = "\n".join(article["CONTEXTS"])
        assert f"{record.annotation[0]}\nAnswer:" == f"Abstract: {contexts}\nQuestion: {article['QUESTION']}\nAnswer:"


def test_fold_0_of_pubmedqa_begins_as_the_official_script_wrote_it(records):
    """As in the data/pqal_fold0/dev_set.json that realhenrycheng/AITA_Coursework_Team11 keeps on GitHub."""
    found = [record.id for record in records["PubMedQA"][0, "validation"]]
    assert found[:7] == ["15879722", "12607666", "17593459", "11882828", "23588461", "26063028", "12836106"]


def test_doubtful_gold_of_medmcqa_is_counted(records):
    found = records["MedMCQA"][0, "validation"]
    assert sum("gold_repeated" in record.meta for record in found) == 4
    assert sum(record.meta["choice_type"] == "multi" for record in found) == 1367
    one_letter = [record for record in found if {*record.annotation[1]} & {*"abcdABCD"}]
    marked = [record for record in found if "letter_options" in record.meta]
    assert len(one_letter) == 13 and len(marked) == 16 and all(record in marked for record in one_letter)


def test_no_carriage_return_is_left(records):
    for record in (record for found in records["Conv2note"].values() for record in found):
        assert "\r" not in "".join(record.annotation)


@pytest.mark.parametrize(
    "form",
    [
        *("{0}", "{0}.", "({0})", "{0}) {1}", "{0}. {1}", "({0}) {1}", "{1} ({0})"),
        *("The answer is {0}", "The answer is {0}, {1}.", "Answer: {0}. {1}"),
    ],
)
@pytest.mark.parametrize("name", ["MedQA", "MedMCQA"])
def test_every_common_form_of_a_letter_is_read_as_that_letter(records, name, form):
    task = SOURCES[name].task
    for record in records[name][0, "validation"][::20]:
        input, _ = task.render(record.annotation)
        for letter, option in zip("ABCDE", task.options(input)[1], strict=False):
            parsed = task.parse(form.format(letter, option), input)
            assert parsed.annotation is not None and parsed.annotation[-1] == letter

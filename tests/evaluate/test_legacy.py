"""`legacy_medtuned` gives what the authors' scripts give: their figures, their defects and their crashes."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
from evaluate_samples import NER, NLI, RELATION, perfect, prediction
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune_jax.errors import UserError
from medtune_jax.evaluate.compare import compare
from medtune_jax.evaluate.legacy import LegacyNer
from medtune_jax.evaluate.score import score, write_scores
from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.registry import get_source

LEGACY = {"protocol": "legacy_medtuned", "resamples": 20}
ZERO_SHOT = "### Instruction:\nDo it.\n\n### Input:\n{}\n\n### Output:\n"
ONE_SHOT = (
    "### Instruction:\nDo it.\n\n### Example 1:\n\n### Input:\ngout\n\n### Output:\ngout : B\n\n"
    "### Example 2:\n\n### Input:\n{}\n\n### Output:\n"
)


def _entry(rows):
    (entry,) = score(rows, **LEGACY).document["sources"].values()
    return entry


def _ner(output, generated, input="a b"):
    return _entry([prediction(NER, input, output, 0, generated)])


def _relations(golds, texts):
    return [
        prediction(RELATION, "Aspirin .", gold, at, text)
        for at, (gold, text) in enumerate(zip(golds, texts, strict=True))
    ]


def test_a_repeated_token_keeps_its_last_tag_at_its_first_place():
    task = LegacyNer(NerTask())
    gold = task.gold("gout : B\nor : O\ngout : I\nof : O", "", {}).annotation
    assert gold == (("gout", "or", "of"), ("I", "O", "O"))


def test_a_token_with_a_colon_keeps_its_wrong_parts():
    task = LegacyNer(NerTask())
    assert task.gold("1:2 : B\n: : O\nthe end\nx : I", "", {}).annotation == (("1", "", "x"), ("O", "O", "I"))


def test_typed_tags_become_outside():
    metrics = _ner("a : B-PROBLEM\nb : O", "a : B-PROBLEM\nb : O")["metrics"]
    assert metrics == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}


def test_a_missing_or_illegal_tag_is_outside_and_extra_tokens_do_not_count():
    gold = "a : B\nb : O\nc : B\nd : B"
    metrics = _ner(gold, "d : B\nx : B\nb : Q\na : b", "a b c d")["metrics"]
    assert (metrics["precision"], metrics["recall"], metrics["accuracy"]) == (1.0, 1 / 3, 0.5)


def test_an_answer_that_cannot_be_read_is_all_outside():
    entry = _ner("a : B\nb : O", "I do not know")
    assert (entry["metrics"]["accuracy"], entry["parse"]["unparsable"]) == (0.5, 1)


@pytest.mark.parametrize("prefix", ["", "<s> ", "\n"])
def test_prompt_and_answer_score_as_the_answer_alone(prefix):
    rows = perfect(NER)
    answers = [f"{one.output.replace('B', 'O', 1)}\n\n### Input:\nmore : B ### Output: a : B" for one in rows]
    alone = [replace(one, generated=text) for one, text in zip(rows, answers, strict=True)]
    whole = [replace(one, generated=prefix + ONE_SHOT.format(one.input) + one.generated) for one in alone]
    assert _entry(whole)["metrics"] == _entry(alone)["metrics"]
    assert _entry(whole)["metrics"]["f1"] < 1


def test_a_zero_shot_prompt_stops_the_entity_script():
    rows = [replace(one, generated=ZERO_SHOT.format(one.input) + one.output) for one in perfect(NER)]
    entry = _entry(rows)
    assert entry["legacy"]["crash"].startswith("IndexError: 5 prompts")
    assert entry["metrics"]["f1"] == 1.0


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_entity_scores_equal_the_script_step_by_step(seed):
    """The script's steps over again, with seqeval itself at the end."""
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    rng = random.Random(seed)
    rows, truth, answers = [], [], []
    for at in range(6):
        tokens = [rng.choice(["a", "b", "c", "x:y", ":", "d"]) for _ in range(rng.randint(1, 9))]
        lines = [[f"{token} : {rng.choice('BIO')}" for token in tokens] for _ in range(2)]
        text = "\n".join(rng.sample(lines[1], rng.randint(0, len(tokens))))
        rows.append(prediction(NER, " ".join(tokens), "\n".join(lines[0]), at, text))
        gold, found = (
            {parts[0].strip(): parts[1].strip() for line in one.split("\n") if len(parts := line.split(":")) > 1}
            for one in ("\n".join(lines[0]), text)
        )
        legal = {"B": "B", "I": "I"}
        truth.append([legal.get(tag, "O") for tag in gold.values()])
        answers.append([legal.get(found.get(token), "O") for token in gold])
    metrics = _entry(rows)["metrics"]
    for name, function in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert metrics[name] == function(truth, answers, zero_division=0)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, answers), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "collapsed", "mentions"),
    [("NCBI-disease", 817, 787), ("BC5CDR-disease", 4174, 4246), ("BC5CDR-chem", 5070, 5347), ("JNLPBA", 9037, 8575)],
)
def test_the_dictionary_changes_the_number_of_gold_entities(shared_data, name, collapsed, mentions):
    task = LegacyNer(NerTask())
    sentences = [block.split("\n") for block in (shared_data / "raw" / name / "devel.tsv").read_text().split("\n\n")]
    tags = []
    for lines in (sentence for sentence in sentences if any(sentence)):
        output = "\n".join(line.replace("\t", " : ") for line in lines if line)
        tags.append(task.gold(output, "", {}).annotation[1])
    assert sum(len(NerTask().entities(one)) for one in tags) == collapsed
    assert sum(line.endswith("\tB") for sentence in sentences for line in sentence) == mentions


def test_inference_takes_the_text_after_the_last_marker_without_line_feeds():
    rows = perfect(NLI)
    whole = [
        replace(one, generated=ZERO_SHOT.format(one.input) + f"\n {one.output[:3]}\n{one.output[3:]} \n")
        for one in rows
    ]
    entry = _entry(whole)
    assert (entry["metrics"], entry["legacy"]["crash"]) == ({"accuracy": 1.0}, None)


def test_an_inference_answer_outside_the_labels_stops_the_script_and_is_counted_wrong():
    rows = perfect(NLI)
    rows[0] = replace(rows[0], generated="entailment")
    entry = _entry(rows)
    assert entry["legacy"]["crash"] == "KeyError: 1 answers are none of the labels"
    assert entry["metrics"] == {"accuracy": 0.75}


def test_a_constant_answer_scores_85_37_on_the_published_counts():
    golds = ["No Relations"] * 36_707 + ["Treats"] * 6_293
    entry = _entry(_relations(golds, ["No Relations"] * 43_000))
    assert round(100 * entry["metrics"]["micro_f1"], 2) == 85.37
    assert entry["metrics"]["f1_positive"] == 0.0
    assert entry["legacy"]["crash"] == "ValueError: 43,000 labels read against 42,999 gold labels"


@pytest.mark.parametrize(("row", "expected"), [(0, 1 / 5), (3, 4 / 5), (5, 1.0)])
def test_an_answer_without_a_label_shifts_all_that_follow(row, expected):
    golds = ["Treats", "Causes", "Treats", "No Relations", "No Relations", "Treats"]
    texts = [gold if at != row else "I cannot tell" for at, gold in enumerate(golds)]
    entry = _entry(_relations(golds, texts))
    assert entry["legacy"]["crash"] is None
    assert entry["legacy"]["shifted_from_row"] == row
    kept = [gold for at, gold in enumerate(golds) if at != row]
    assert entry["metrics"]["micro_f1"] == sum(map(str.__eq__, kept, golds)) / 5 == expected


def test_two_answers_without_a_label_stop_the_script():
    entry = _entry(_relations(["Treats", "Causes", "Treats"], ["", "?", "Treats"]))
    assert entry["legacy"]["crash"] == "ValueError: 1 labels read against 2 gold labels"
    assert entry["metrics"]["micro_f1"] == 1 / 3
    assert entry["legacy"]["shifted_from_row"] is None


def test_a_shift_is_not_a_mistake_of_the_rows_that_it_moves():
    rows = _relations(["Treats", "Causes", "Treats"], ["?", "Causes", "Treats"])
    assert [(one["row"], one["kind"]) for one in score(rows, **LEGACY).errors] == [(0, "unparsable")]


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_best_and_worst_orders_equal_a_search_of_all_orders(seed):
    rng = random.Random(seed)
    labels = get_source(RELATION).task.labels
    golds = rng.choices(labels, k=12)
    texts = [" ".join(rng.sample(labels, rng.randint(1, 3))) for _ in golds]
    texts[rng.randrange(12)] = "none of them"
    legacy = _entry(_relations(golds, texts))["legacy"]

    def script(order):
        found = [
            next(label for label in order if label in text) for text in texts if any(label in text for label in order)
        ]
        return sum(map(str.__eq__, found, golds)) / 11 if len(found) == 11 else None

    values = {order: script(order) for order in itertools.permutations(dict.fromkeys(legacy["label_order"]))}
    if None in values.values():
        assert legacy["crash"]
        return
    assert legacy["best_order"]["micro_f1"] == max(values.values()) == values[tuple(legacy["best_order"]["order"])]
    assert legacy["worst_order"]["micro_f1"] == min(values.values()) == values[tuple(legacy["worst_order"]["order"])]


def test_relation_scores_equal_scikit_learn():
    from sklearn.metrics import f1_score

    rng = random.Random(1)
    labels = get_source(RELATION).task.labels
    golds, texts = rng.choices(labels, k=40), rng.choices(labels, k=40)
    metrics = _entry(_relations(golds, texts))[
        "metrics"
    ]  # 40 labels read: the script stops, rows are paired as they are
    assert metrics["micro_f1"] == pytest.approx(f1_score(golds, texts, average="micro"), abs=1e-12)
    assert metrics["macro_f1"] == pytest.approx(f1_score(golds, texts, average="macro"), abs=1e-12)
    positive = [label for label in labels if label != "No Relations"]
    expected = f1_score(golds, texts, labels=positive, average="micro")
    assert metrics["f1_positive"] == pytest.approx(expected, abs=1e-12)


def test_a_source_without_a_legacy_scorer_is_named():
    gad = get_source("GAD")
    rows = [prediction("GAD", "x", gad.task.labels[0], 0)]
    found = score(perfect(NLI) + rows, **LEGACY).document
    assert "published no scorer" in found["not_scored"]["GAD"]["reason"]
    with pytest.raises(UserError, match=r"published no scorer .*: GAD"):
        score(rows, **LEGACY)


def test_legacy_runs_compare_as_pairs_of_what_the_script_compares(tmp_path):
    golds = ["Treats", "Causes", "Treats", "No Relations"] * 5
    for name, texts in (("good", golds), ("shifted", ["?", *golds[1:]])):
        write_scores(tmp_path / name, score(_relations(golds, texts), **LEGACY))
    entry = compare([tmp_path / "good", tmp_path / "shifted"])["sources"][RELATION]
    assert entry["metrics"]["micro_f1"][1]["difference"] < 0
    assert list(entry["crashes"]) == ["good"]
    write_scores(tmp_path / "aligned", score(_relations(golds, golds), resamples=20))
    with pytest.raises(UserError, match="by protocol legacy_medtuned"):
        compare([tmp_path / "good", tmp_path / "aligned"])


def test_every_row_keeps_its_place_in_the_table():
    golds = ["Treats", "Causes", "Treats"]
    scores = score(_relations(golds, ["?", "Causes", "Treats"]), **LEGACY)
    table = scores.tables[RELATION]
    assert table.rows == (0, 1, 2)
    assert Counter(table.statistics[:, table.names.index("rows")]) == {1: 2, 0: 1}

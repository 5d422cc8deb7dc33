"""BioASQ's golden files: three kinds of questions, answers in every shape that occurs, defects by question."""

import json

import pytest

from medtune_jax.data_prep.readers.bioasq import READERS
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import SOURCES


def question(type, answer, **changes):
    return {"id": f"{type}-1", "type": type, "body": "Which\none?", "exact_answer": answer, "snippets": [], **changes}


@pytest.fixture
def read(tmp_path):
    def reader(kind, *questions, name="golden.json", text=None):
        (tmp_path / name).write_text(json.dumps({"questions": questions}) if text is None else text)
        return READERS[f"bioasq_{kind}"](tmp_path / name, SOURCES[f"BioASQ-{kind}"].task)

    return reader


def test_the_input_is_the_snippets_and_the_question(read):
    snippets = [{"text": "One\nline. "}, {"text": "Two."}]
    (record,) = read("yesno", question("yesno", "yes", snippets=snippets)).records
    assert record.annotation == ("One line.\nTwo.\nQuestion: Which one?", "yes") and record.id == "yesno-1"


@pytest.mark.parametrize("answer", ["Yes", "yes.", ["yes"], " YES "])
def test_yes_is_yes_however_written(read, answer):
    assert read("yesno", question("yesno", answer)).annotations[0][-1] == "yes"


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("a", ("a",)),
        (["a"], ("a",)),
        ([["a", "b"]], ("a", "b")),
        (["a", "b", "a"], ("a", "b")),
        ([["a "], ["b", ""]], ("a", "b")),
    ],
)
def test_a_factoid_is_one_item_with_all_its_names(read, answer, names):
    assert read("factoid", question("factoid", answer)).annotations[0][-1] == ((names,),)


@pytest.mark.parametrize(
    ("answer", "items"),
    [(["a", "b"], (("a",), ("b",))), ([["a", "x"], ["b"]], (("a", "x"), ("b",))), ([["a"], "b"], (("a",), ("b",)))],
)
def test_a_list_has_an_item_per_inner_list_or_string(read, answer, items):
    assert read("list", question("list", answer)).annotations[0][-1] == (items,)


def test_other_questions_and_missing_answers_are_counted(read):
    questions = [question("summary", "x"), question("list", ["a"]), question("yesno", ""), question("yesno", "no")]
    found = read("yesno", *questions)
    assert len(found.records) == 1
    assert found.dropped == {"a summary question": 1, "a list question": 1, "no exact_answer": 1}


def test_a_folder_is_read_batch_by_batch_in_the_order_of_names(read, tmp_path):
    for name in ("b2.json", "b1.json"):
        read("list", question("list", [name], id=name), name=name)
    found = READERS["bioasq_list"](tmp_path, SOURCES["BioASQ-list"].task)
    assert [items for _, items in found.annotations] == [((("b1.json",),),), ((("b2.json",),),)]


def test_a_question_of_two_batches_is_one_row_and_counted(read, tmp_path):
    for name in ("b1.json", "b2.json"):
        read("list", question("list", [name]), name=name)
    found = READERS["bioasq_list"](tmp_path, SOURCES["BioASQ-list"].task)
    assert [items for _, items in found.annotations] == [((("b1.json",),),)]
    assert found.dropped == {"a question that was there before": 1}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (question("yesno", "maybe"), r"golden\.json, question yesno-1: unknown exact_answer 'maybe'\. Known: no, yes"),
        (question("yesno", {"a": 1}), r"question yesno-1: unknown exact_answer '{'a': 1}'"),
        (question("yesno", "yes", body=None), r"question yesno-1: no string 'body'; expected a question with id"),
        (question("yes-no", "yes"), r"question yes-no-1: unknown type 'yes-no'\. Did you mean 'yesno'"),
        (question("yesno", "yes", snippets=["x"]), r"question yesno-1: 'snippets' is no list of objects"),
        (question("yesno", "yes", id=7), r"golden\.json, questions\[1\]: no string 'id'"),
        ("x", r"golden\.json, questions\[1\]: expected a question with id"),
    ],
)
def test_bad_questions_are_named(read, item, said):
    with pytest.raises(UserError, match=said):
        read("yesno", question("yesno", "no"), item)


@pytest.mark.parametrize(
    ("answer", "said"),
    [([3], r"question list-1: exact_answer \[3\]; expected strings"), ([" ", []], r"exact_answer .* holds no text")],
)
def test_bad_items_are_named(read, answer, said):
    with pytest.raises(UserError, match=said):
        read("list", question("list", answer))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"questions": [\n{"id"', r"golden\.json:2: not JSON"),
        ("{}", r"golden\.json: no list 'questions'"),
        ('{"questions": []}', r"golden\.json: no questions in it"),
    ],
)
def test_bad_files_are_named(read, text, said):
    with pytest.raises(UserError, match=said):
        read("list", text=text)


@pytest.mark.parametrize("kind", ["yesno", "factoid", "list"])
def test_an_answer_round_trips_with_its_synonyms_and_a_perfect_one_scores_one(read, kind):
    answer = {"yesno": "no", "factoid": ["a", "b"], "list": [["a", "x"], ["c"]]}[kind]
    task = SOURCES[f"BioASQ-{kind}"].task
    (annotation,) = read(kind, question(kind, answer)).annotations
    input, output = task.render(annotation)
    assert task.gold(output, input, task.facts(annotation)).annotation == annotation
    scores = task.metrics(task.statistics(annotation, task.parse(output, input), input))
    assert scores[task.metric] == 1

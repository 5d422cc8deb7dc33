"""The readers of MedQA and MedMCQA."""

import json

import pytest

from medtune_jax.data_prep.readers.choice import read_medmcqa, read_medqa
from medtune_jax.errors import UserError
from medtune_jax.tasks.choice import ChoiceTask

TASK = ChoiceTask()


def medqa(**changes):
    return {
        "question": "Which drug?\r\n",
        "answer": "Two",
        "options": {"A": "One", "B": 'Two\n"'},
        "meta_info": "step1",
        "answer_idx": "B",
        **changes,
    }


def medmcqa(**changes):
    options = {"opa": "a1", "opb": "b1", "opc": "c1", "opd": "d1"}
    return {"question": "Q", "exp": None, "cop": 2, **options, "id": "x-1", "choice_type": "multi", **changes}


@pytest.fixture
def file(tmp_path):
    def writer(*items):
        path = tmp_path / "dev.json"
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
        return path

    return writer


def test_medqa_has_as_many_options_as_the_file_gives(file):
    four = dict(zip("ABCD", "wxyz", strict=True))
    found = read_medqa(file(medqa(), medqa(options=four, answer_idx="D")), TASK)
    assert found.annotations == [
        ("Which drug?", ("One", 'Two "'), "B"),
        ("Which drug?", ("w", "x", "y", "z"), "D"),
    ]
    assert found.records[0].meta == {"step": "step1"}


def test_options_are_in_the_order_of_their_letters(file):
    found = read_medqa(file(medqa(options={"B": "Two", "A": "One"})), TASK)
    assert found.annotations == [("Which drug?", ("One", "Two"), "B")]


def test_medmcqa_counts_its_answers_from_one(file):
    (record,) = read_medmcqa(file(medmcqa()), TASK).records
    assert record.annotation == ("Q", ("a1", "b1", "c1", "d1"), "B")
    assert (record.id, record.meta) == ("x-1", {"choice_type": "multi"})


def test_doubtful_gold_stays_in_and_is_told(file):
    found = read_medmcqa(file(medmcqa(opd="b1"), medmcqa(opa="c", opc="ac"), medmcqa(opa="AA")), TASK)
    assert [record.meta for record in found.records] == [
        {"choice_type": "multi", "gold_repeated": True},
        {"choice_type": "multi", "letter_options": True},
        {"choice_type": "multi"},
    ]


def test_a_test_file_of_withheld_answers_gives_no_rows_and_says_why(file):
    unlabelled = {key: value for key, value in medmcqa().items() if key != "cop"}
    found = read_medmcqa(file(unlabelled, unlabelled), TASK)
    assert found.records == [] and found.dropped == {"no cop: the answer is withheld": 2}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (medqa(answer_idx="C"), r"dev\.json:2: answer_idx 'C' is none of the options A, B"),
        (medqa(options={"A": "One", "C": "Two"}), r"dev\.json:2: no 'options' under the letters A, B, \.\.; expected"),
        (medqa(options={"A": "One"}, answer_idx="A"), r"dev\.json:2: no 'options' under the letters"),
        (medqa(options=["One"]), r"dev\.json:2: no 'options' under the letters"),
        (medqa(question=None), r"dev\.json:2: no string 'question'; expected an object with question, options"),
    ],
)
def test_bad_medqa_lines_are_named(file, item, said):
    with pytest.raises(UserError, match=said):
        read_medqa(file(medqa(), item), TASK)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (medmcqa(cop=5), r"dev\.json:2: cop 5 is not the number of an option, 1 to 4\."),
        (medmcqa(cop=0), r"cop 0 is not .* 1 to 4 \(a file that counts from 0"),
        (medmcqa(cop="2"), r"cop '2' is not the number"),
        (medmcqa(cop=True), r"cop True is not the number"),
        (medmcqa(opc=3), r"dev\.json:2: no string 'opc'; expected an object with question, opa"),
    ],
)
def test_bad_medmcqa_lines_are_named(file, item, said):
    with pytest.raises(UserError, match=said):
        read_medmcqa(file(medmcqa(), item), TASK)


@pytest.mark.parametrize("read", [read_medqa, read_medmcqa])
def test_an_empty_file_is_named(file, read):
    with pytest.raises(UserError, match=r"dev\.json: empty, no JSON lines with question"):
        read(file(), TASK)

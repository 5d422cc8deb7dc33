"""Collections of instructions: which instruction counts, what is dropped, OUR categories."""

import json

import pytest

from medtune_jax.data_prep.readers.instructions import READERS, category_of
from medtune_jax.errors import UserError
from medtune_jax.tasks.text import TextTask

TASK = TextTask()
ROW = {"instruction": "Explain it.", "input": "Why?\r\n", "output": " So.\r\nThus. "}


@pytest.fixture
def read(tmp_path):
    def reader(format, items):
        path = tmp_path / "rows.json"
        path.write_bytes(items if isinstance(items, bytes) else json.dumps(items).encode())
        return READERS[format](path, TASK)

    return reader


def test_a_consultation_leaves_its_constant_instruction_out(read):
    (record,) = read("consultations", [ROW]).records
    assert (record.instruction, record.annotation) == ("", ("Why?", "So.\nThus."))


def test_an_instruction_row_keeps_its_own_and_gets_a_category(read):
    (record,) = read("instructions", [ROW]).records
    assert (record.instruction, record.meta) == ("Explain it.", {"category": "QA"})


def test_a_pmc_llama_row_keeps_its_own_and_its_subsource(read):
    (record,) = read("pmc_llama", [{**ROW, "source": "umls", "sample_id": None}]).records
    assert (record.instruction, record.meta) == ("Explain it.", {"subsource": "umls"})


def test_the_physician_answers_in_icliniq(read):
    row = {"input": "Why?", "answer_icliniq": "So.", "answer_chatgpt": "No.", "answer_chatdoctor": "Perhaps."}
    assert read("icliniq", [row]).annotations == [("Why?", "So.")]


def test_a_row_without_output_is_dropped_and_counted_and_a_repeated_one_is_not(read):
    found = read("consultations", [ROW, {**ROW, "output": " \n"}, ROW])
    assert len(found.records) == 2 and found.dropped == {"empty output": 1}


@pytest.mark.parametrize("format", ["instructions", "pmc_llama"])
def test_an_instruction_may_need_no_input_but_must_say_something(read, format):
    found = read(format, [{**ROW, "input": None, "source": "umls"}, {**ROW, "instruction": " ", "source": "umls"}])
    assert found.annotations == [("", "So.\nThus.")] and found.dropped == {"empty instruction": 1}


@pytest.mark.parametrize("format", READERS)
@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([{"question": "x"}], r"rows\.json:1: no string '\w+'; expected an object with "),
        (b'[{"instruction": "a",\n"inp', r"rows\.json:1: not JSON|rows\.json:2: not JSON"),
        (b'[\n{"input": "\xff"}]', r"rows\.json:2: not UTF-8"),
        ([], r"rows\.json: empty, no JSON objects"),
        ({"input": 3}, r"rows\.json:1: no string '\w+'"),
    ],
)
def test_bad_files_are_named(read, format, items, said):
    with pytest.raises(UserError, match=said):
        read(format, items)


@pytest.mark.parametrize(
    ("instruction", "category"),
    [
        ("Extract all drug names from the passage.", "IE"),
        ("Identify the main finding and explain it.", "IE"),
        ("Write a discharge summary for the patient.", "GEN"),
        ("Summarize the findings below.", "GEN"),
        ("Write a list of questions for the visit.", "GEN"),
        ("Generate a differential diagnosis. List the top three.", "GEN"),
        ("What are the side effects of the drug?", "QA"),
        ("Answer the following question.", "QA"),
        ("You are a nurse. Classify the wound.", "IE"),
        ("Good morning.", "other"),
    ],
)
def test_the_words_of_an_instruction_give_its_category(instruction, category):
    assert category_of(instruction) == category

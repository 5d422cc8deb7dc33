"""What is read from a model's text where a JSON list, or an object of lists, was asked for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune_jax.tasks.extract import ExtractTask
from medtune_jax.tasks.extract_reading import read_list

LIST = ExtractTask()
FIELDS = ExtractTask(("active", "discontinued"))
SINGLE = ExtractTask(single=True)
ALL = (LIST, FIELDS, SINGLE, ExtractTask(ranked=True))


def read(task, text):
    """(names, problems) or (None, problems); of a task with fields, names per field."""
    parsed = task.parse(text, "x")
    if parsed.annotation is None:
        return None, parsed.problems
    input, items = parsed.annotation
    assert input == "x"
    names = tuple(tuple(name for (name,) in of_field) for of_field in items)
    return names if task.fields else names[0], parsed.problems


@pytest.mark.parametrize(
    ("text", "names", "problems"),
    [
        ('["a", "b"]', ("a", "b"), ()),
        (' ["a"] \n', ("a",), ()),
        ("[]", (), ()),
        ('[\n "a",\n "b"\n]', ("a", "b"), ()),
        ('["a", "a"]', ("a", "a"), ()),
        ('["a \\"q\\" \\u00e9"]', ('a "q" \u00e9',), ()),
        ('```json\n["a"]\n```', ("a",), ("code_fence",)),
        ("```\n['a',]\n```", ("a",), ("code_fence", "single_quotes", "trailing_comma")),
        ('Sure: ["a"]', ("a",), ("extra_text",)),
        ('["a"] is the answer', ("a",), ("extra_text",)),
        ('As in [1] and [see 2]: ["a"]', ("a",), ("extra_text",)),
        ('["a"]\n["b"]', ("b",), ("extra_text",)),
        ('["a"]\n ### Input: ["b"]', ("a",), ("cut_at_marker",)),
        ("['Parkinson's disease', 'b']", ("Parkinson's disease", "b"), ("single_quotes",)),
        ("['a \"b\" c']", ('a "b" c',), ("single_quotes",)),
        ("[aspirin, metformin]", ("aspirin", "metformin"), ("unquoted",)),
        ('["a", "b",]', ("a", "b"), ("trailing_comma",)),
        ('["a"}', ("a",), ("bracket",)),
        ('["a", "half', ("a",), ("cut_off",)),
        ('["a", "b"', ("a", "b"), ("cut_off",)),
        ("[aspirin, metf", ("aspirin",), ("unquoted", "cut_off")),
        ('["a"\n"b"]', ("a", "b"), ("not_json",)),
        ('["the "big" one"]', ('the "big" one',), ("not_json",)),
        ('{"answer": ["a", "b"]}', ("a", "b"), ("object_for_list",)),
        ('{"answer": "a"}', ("a",), ("object_for_list",)),
        ("[1, 2.50]", ("1", "2.50"), ("not_a_string", "not_a_string")),
        ('[["a", "b"], ["c"]]', ("a", "c"), ("nested_list", "nested_list")),
        ('[{"name": "a"}]', ("a",), ("nested_list",)),
        ('["a", null, true, ""]', ("a",), ("bad_item",) * 3),
        ("- a\n- b c", ("a", "b c"), ("bullets",)),
        ("The drugs are:\n1. a\n2) b.", ("a", "b."), ("extra_text", "bullets")),
        ("a\nb, c", ("a", "b, c"), ("lines",)),
        ("aspirin, metformin", ("aspirin", "metformin"), ("commas",)),
        ("aspirin", ("aspirin",), ("commas",)),
        ('"aspirin"', ("aspirin",), ("commas",)),
    ],
)
def test_a_list_is_read_and_every_repair_named(text, names, problems):
    assert read(LIST, text) == (names, problems)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ("empty_output",)),
        (" \n\n", ("empty_output",)),
        ("### Output: a", ("cut_at_marker", "empty_output")),
        ("I do not know the answer.", ("no_list",)),
        ("It may be one of several things, aspirin for one", ("no_list",)),
        ("[", ("cut_off", "no_list")),
        ('["half', ("cut_off", "no_list")),
        ("[asp", ("cut_off", "no_list")),
        ("[null]", ("bad_item", "no_list")),
        ("[[]]", ("nested_list", "bad_item", "no_list")),
        ('{"a": ["b"], "c": ["d"]}', ("no_list",)),
        ("]", ("no_list",)),
        ("...", ("no_list",)),
        ("-", ("no_list",)),
    ],
)
def test_what_is_no_list_is_no_answer(text, problems):
    assert read(LIST, text) == (None, problems)


@pytest.mark.parametrize(
    ("text", "names", "problems"),
    [
        ('{"active": ["a"], "discontinued": []}', (("a",), ()), ()),
        ('{"discontinued": ["b"], "active": ["a"]}', (("a",), ("b",)), ()),
        ('{"Active": ["a"], "discontinued": []}', (("a",), ()), ("field_case",)),
        ('{"active": "a", "discontinued": null}', (("a",), ()), ("not_a_list", "not_a_list")),
        ('{"active": ["a"], "dose": ["b"]}', (("a",), ()), ("unknown_field", "missing_field")),
        ('{"active": ["a"], "active": ["b"], "discontinued": []}', (("a", "b"), ()), ("repeated_field",)),
        ('{"active": ["a"], "discontinued": [], ', (("a",), ()), ("cut_off",)),
        ('[Note] {"active": ["a"], "discontinued": []}', (("a",), ()), ("extra_text",)),
        ('{"active": ["a", "b"], "discon', (("a", "b"), ()), ("cut_off", "missing_field")),
        ("{'active': ['a'], discontinued: []}", (("a",), ()), ("single_quotes", "unquoted")),
        ('From [the note]: {"active": [], "discontinued": ["b"]}.', ((), ("b",)), ("extra_text", "extra_text")),
    ],
)
def test_an_object_of_fields_is_read_and_every_repair_named(text, names, problems):
    assert read(FIELDS, text) == (names, problems)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "no_field"),
        ('{"active": [null]}', "no_field"),
        ('{"active": [', "no_field"),
        ('["a"]', "list_for_object"),
        ("active: a", "no_list"),
    ],
)
def test_what_names_no_field_is_no_answer(text, problem):
    names, problems = read(FIELDS, text)
    assert names is None and problems[-1] == problem


@pytest.mark.parametrize(
    ("text", "names", "problems"),
    [
        ('["the patient"]', ("the patient",), ()),
        ("the patient", ("the patient",), ("lines",)),
        ("His mother, a nurse.", ("His mother, a nurse",), ("lines",)),
        ('["the patient", "the nurse"]', ("the patient",), ("extra_items",)),
        ("He means the patient who came in with chest pain.", None, ("no_list",)),
    ],
)
def test_a_single_answer_may_stand_on_a_line_of_its_own(text, names, problems):
    assert read(SINGLE, text) == (names, problems)


PIECES = [*"[]{}:,\"'\\\n ", '["', '"]', '":[', "```", "active", "\n### ", "null", "1", "- ", "a b", "\u2028"]
UNITS = ['{"a":', '["a", ', "['a' ", "[a", '[{"x', "\\\\", '"a" "', "- a\n", "a, ", "1. a\n", "[ \t"]


@settings(max_examples=1000)
@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=30).map("".join)))
def test_any_string_is_read_or_refused(text):
    for task in ALL:
        parsed = task.parse(text, "x")
        assert (parsed.annotation is None) <= bool(parsed.problems)
        if parsed.annotation is not None:
            assert len(parsed.annotation[1]) == max(1, len(task.fields))
            assert all(name and name == name.strip() for of_field in parsed.annotation[1] for (name,) in of_field)


@pytest.mark.parametrize("unit", [*PIECES, *UNITS])
def test_a_hundred_thousand_characters_are_no_trouble(unit):
    text = unit * (100_000 // len(unit))
    for task in (LIST, FIELDS):
        for prefix in ("", '{"active": ["'):
            task.parse(prefix + text, "x")


def test_a_number_longer_than_python_converts_is_a_number():
    assert read(LIST, f"[{'1' * 5000}]") == (("1" * 5000,), ("not_a_string",))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("**BRCA1**", ["BRCA1"]),
        ("- **aspirin**\n- **heparin**", ["aspirin", "heparin"]),
        ("Answer: BRCA1", ["BRCA1"]),
        ("**Answer:** aspirin, heparin", ["aspirin", "heparin"]),
        ('The form is\n["..."]\nMy answer:\n["aspirin"]', ["aspirin"]),
        ('["first guess"]\nOn reflection:\n["aspirin", "heparin"]', ["aspirin", "heparin"]),
        ('["aspirin"]\nThe form was\n[".."]', ["aspirin"]),
    ],
)
def test_markdown_lead_ins_and_drafts_are_left_out(text, names):
    assert read_list(text, False, []) == names

"""Medication status and coreference, on invented snippets."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtune_jax.data_prep.readers.clinical_ie import _names, read_coreference, read_medication_status
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import SOURCES

STATUS = SOURCES["medication_status"].task
COREFERENCE = SOURCES["coreference"].task
STATUS_HEADER = "index,snippet,active_medications,discontinued_medications,neither_medications\n"
COREFERENCE_HEADER = "snippet,pronoun,antecedent\n"


@pytest.fixture
def file(tmp_path):
    def writer(text):
        path = tmp_path / "test.csv"
        path.write_text(text)
        return path

    return writer


def round_trips(task, annotation):
    input, output = task.render(annotation)
    parsed = task.parse(output, input)
    scores = task.metrics(task.statistics(annotation, parsed, input))
    return task.gold(output, input, task.facts(annotation)).annotation == annotation and scores[task.metric] == 1


@given(names=st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda name: name == name.strip())))
def test_a_list_of_names_reads_the_same_from_json_and_from_python(names):
    expected = tuple(dict.fromkeys(names))
    assert _names(json.dumps(names), "active", "") == _names(repr(names), "active", "") == expected


@given(cell=st.text(max_size=30))
def test_any_other_cell_is_an_error_of_the_user(cell):
    try:
        assert all(isinstance(name, str) for name in _names(cell, "active", "f:1"))
    except UserError as error:
        assert str(error).startswith("f:1: ")


def test_medications_are_read_from_lists_of_either_writing(file):
    text = STATUS_HEADER + '0,"Took axol, now bexin.","[\'bexin\', \'bexin\']","[""axol""]",[]\n'
    (annotation,) = read_medication_status(file(text), STATUS).annotations
    assert annotation == ("Took axol, now bexin.", ((("bexin",),), (("axol",),), ()))
    assert round_trips(STATUS, annotation)


def test_a_pronoun_has_an_antecedent_or_any_of_several(file):
    text = COREFERENCE_HEADER + "The lump grew. It hurts.,It,The lump\nNo.,he,\"['the son', 'Mr. X']\"\n"
    found = read_coreference(file(text), COREFERENCE).annotations
    assert found == [
        ("The lump grew. It hurts.\nPronoun: It", ((("The lump",),),)),
        ("No.\nPronoun: he", ((("the son", "Mr. X"),),)),
    ]
    assert all(round_trips(COREFERENCE, annotation) for annotation in found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (STATUS_HEADER + "0,a,[],[],none\n", r"test\.csv:2: 'none' in column 'neither_medications' is no list"),
        (STATUS_HEADER + "0,a,[],[1],[]\n", r"test\.csv:2: '\[1\]' in column 'discontinued_medications'"),
        (STATUS_HEADER + "0,a,[],[]\n", r"test\.csv:2: 5 columns are expected, found 4"),
        ("text\nx\n", r"test\.csv:1: no column snippet, active_medications"),
        (STATUS_HEADER, r"test\.csv: empty, no records of snippet and medications"),
    ],
)
def test_bad_medication_files_are_named(file, text, said):
    with pytest.raises(UserError, match=said):
        read_medication_status(file(text), STATUS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (COREFERENCE_HEADER + "a,it,\n", r"test\.csv:2: no antecedent"),
        (COREFERENCE_HEADER + "a,it,[]\n", r"test\.csv:2: no antecedent"),
        (COREFERENCE_HEADER + "a,it,[x\n", r"test\.csv:2: '\[x' in column 'antecedent' is no list"),
        ("snippet,pronoun\na,it\n", r"test\.csv:1: no column antecedent"),
    ],
)
def test_bad_coreference_files_are_named(file, text, said):
    with pytest.raises(UserError, match=said):
        read_coreference(file(text), COREFERENCE)

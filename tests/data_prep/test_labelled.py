"""The readers of relation TSV and inference JSON lines."""

import json

import pytest

from medtune_jax.data_prep.labelled import read_nli_jsonl, read_relation_tsv
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import get_source

RELATION = get_source("sample-relation").task
NLI = get_source("sample-nli").task


def pair(**changes):
    return json.dumps({"sentence1": "a", "sentence2": "b", "gold_label": "neutral", **changes})


@pytest.fixture
def file(tmp_path):
    def writer(text):
        path = tmp_path / "dev.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return writer


def test_relations_are_read_with_or_without_header(file):
    expected = [("x treats y .", "Treats"), ("x, y", "No Relations")]
    rows = "x treats y .\tTreats\r\nx, y\tno relations\n"
    assert read_relation_tsv(file(rows), RELATION).annotations == expected
    assert read_relation_tsv(file("sentence\tlabel\n" + rows), RELATION).annotations == expected


def test_pairs_are_read_in_mednli_form(file):
    text = "\n".join(
        [pair(gold_label="entailment", pairID="7"), pair(sentence1="one\ntwo\u2028"), pair(gold_label="-"), ""]
    )
    found = read_nli_jsonl(file(text), NLI)
    assert found.annotations == [("a", "b", "Entailment"), ("one two\u2028", "b", "Neutral")]
    assert [record.id for record in found.records] == ["7", ""]
    assert found.dropped == {"gold_label is '-': no consensus": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x\tTreats\ny\tTreat\n", r"dev\.txt:2: unknown label 'Treat'\. Did you mean 'Treats'"),
        ("x\tTreats\n\ny\n", r"dev\.txt:3: sentence<TAB>label is expected, found 1 column"),
        ("x\ty\tTreats\n", r":1: sentence<TAB>label is expected, found 3 column"),
        (" \tTreats\n", r":1: sentence<TAB>label is expected"),
        ("sentence\tlabel\n", r"dev\.txt: empty, no sentence<TAB>label lines"),
        (b"\xff\n", r"dev\.txt:1: not UTF-8"),
    ],
)
def test_bad_relation_files_are_named(file, text, said):
    with pytest.raises(UserError, match=said):
        read_relation_tsv(file(text), RELATION)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{pair()}\n{{", r"dev\.txt:2: not JSON"),
        ("[]", r":1: no string 'sentence1'; expected an object with sentence1, sentence2, gold_label"),
        (pair(sentence2=None), r":1: no string 'sentence2'"),
        (pair(gold_label="maybe"), r":1: unknown label 'maybe'"),
        ("", r"dev\.txt: empty, no JSON lines"),
        (pair(gold_label="-"), r"dev\.txt: empty"),
    ],
)
def test_bad_pair_files_are_named(file, text, said):
    with pytest.raises(UserError, match=said):
        read_nli_jsonl(file(text), NLI)

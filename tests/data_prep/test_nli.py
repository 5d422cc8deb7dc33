"""The reader of inference JSON lines, on invented pairs."""

import json

import pytest

from medtune_jax.data_prep.readers.nli import read_nli_jsonl
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import get_source

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


def test_pairs_are_read_in_mednli_form(file):
    text = "\n".join(
        [pair(gold_label="entailment", pairID="7"), pair(sentence1="one\ntwo\u2028x"), pair(gold_label="-"), ""]
    )
    found = read_nli_jsonl(file(text), NLI)
    assert found.annotations == [("a", "b", "Entailment"), ("one two\u2028x", "b", "Neutral")]
    assert [record.id for record in found.records] == ["7", ""]
    assert found.dropped == {"gold_label is '-': no consensus": 1}


def test_hypotheses_of_one_premise_are_one_group(file):
    texts = [pair(sentence2="b"), pair(sentence2="c"), pair(sentence1="another")]
    one, two, other = (record.group for record in read_nli_jsonl(file("\n".join(texts)), NLI).records)
    assert one == two != other and len(one) == 16


def test_line_ends_white_space_and_half_surrogates_are_mended(file):
    text = pair(sentence1="half \ud800 of", sentence2=" x\r\ny ")
    assert read_nli_jsonl(file(text), NLI).annotations == [("half \ufffd of", "x y", "Neutral")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{pair()}\n{{", r"dev\.txt:2: not JSON"),
        (f"{pair()}\n[2]", r"dev\.txt:2: a JSON object is expected, found list"),
        ('{"a": 1}', r":1: no string 'sentence1'; expected an object with sentence1, sentence2, gold_label"),
        (pair(sentence2=None), r":1: no string 'sentence2'"),
        (f"{pair()}\n{pair(sentence2=' ')}", r":2: sentence2 is empty"),
        (pair(gold_label="maybe"), r":1: unknown label 'maybe'"),
        ("", r"dev\.txt: empty, no JSON lines"),
        (pair(gold_label="-"), r"dev\.txt: empty"),
    ],
)
def test_bad_pair_files_are_named(file, text, said):
    with pytest.raises(UserError, match=said):
        read_nli_jsonl(file(text), NLI)

"""The credentialed corpora through `prepare`, from invented files in each form that is read."""

import json

import pytest

from medtune_jax.data_prep.prepare import prepare
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import SOURCES
from medtune_jax.tasks.rows import read_rows

CONCEPTS = 'c="blue cough" 1:0 1:1||t="problem"\nc="quartz tea" 1:4 1:5||t="treatment"\n'
RELATION = 'c="quartz tea" 1:4 1:5||r="TrAP"||c="blue cough" 1:0 1:1\n'
RECORD = {"txt/r1.txt": "Blue cough treated with quartz tea .\n", "concept/r1.con": CONCEPTS, "rel/r1.rel": RELATION}
XML = """<?xml version="1.0" encoding="UTF-8" ?>
<ClinicalNarrativeTemporalAnnotation>
<TEXT><![CDATA[Blue cough .
]]></TEXT>
<TAGS><EVENT id="E0" start="0" end="10" text="Blue cough" modality="FACTUAL" polarity="POS" type="PROBLEM" /></TAGS>
</ClinicalNarrativeTemporalAnnotation>
"""
PAIR = {"sentence1": "Has a blue cough .", "sentence2": "Is well .", "gold_label": "contradiction", "pairID": "p1"}
MARKED = "@problem$ treated with @treatment$ ."
FORMS = {
    "i2b2-2010 folders": {f"i2b2-2010/reference_standard_for_test_data/{name}": text for name, text in RECORD.items()},
    "i2b2-2010 BLUE": {
        "i2b2-2010/test.tsv": f"index\tsentence\tlabel\nr1.r1.con.l0.r1.con.l1\t{MARKED}\tTrAP\n",
    },
    "i2b2-2012 XML": {"i2b2-2012/ground_truth/merged_xml/1.xml": XML},
    "i2b2-2012 tokens": {"i2b2-2012/test.tsv": "Blue\tB-PROBLEM\ncough\tI-PROBLEM\n.\tO\n"},
    "MedNLI": {"MedNLI/mli_test_v1.jsonl": json.dumps(PAIR) + "\n"},
}
ROWS = {
    "i2b2-2010": (MARKED, "TrAP"),
    "i2b2-2012": ("Blue cough .", "Blue : B-PROBLEM\ncough : I-PROBLEM\n. : O"),
    "MedNLI": ("Sentence 1: Has a blue cough .\nSentence 2: Is well .", "Contradiction"),
}


@pytest.fixture
def raw(tmp_path, request):
    for name, text in FORMS[request.param].items():
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "raw"


@pytest.mark.parametrize("raw", FORMS, indirect=True)
def test_each_form_as_distributed_gives_the_same_row_and_its_count_is_compared(raw, tmp_path):
    name = next(raw.iterdir()).name
    prepare(tmp_path / "rows", raw_dir=raw, sources=[name], signed=[name])
    (row,) = read_rows(tmp_path / "rows", "test")
    assert (row.input, row.output) == ROWS[name]
    facts = json.loads((tmp_path / "rows" / "manifest.json").read_text())["sources"][name]["splits"]["test"]
    assert facts["expected"] == SOURCES[name].expected["test"] and facts["differs"]


@pytest.mark.parametrize("raw", FORMS, indirect=True)
def test_nothing_is_read_of_a_corpus_whose_agreement_was_not_signed(raw, tmp_path):
    with pytest.raises(UserError, match="i_have_signed"):
        prepare(tmp_path / "rows", raw_dir=raw, sources=[next(raw.iterdir()).name])
    assert not (tmp_path / "rows").exists()


def test_exactly_the_corpora_under_a_data_use_agreement_are_credentialed():
    assert {name for name, source in SOURCES.items() if source.credentialed} >= {"i2b2-2010", "i2b2-2012", "MedNLI"}
    assert not any(SOURCES[name].credentialed for name in ("GAD", "hoc", "ChemProt", "JNLPBA-5types", "NCBI-disease"))

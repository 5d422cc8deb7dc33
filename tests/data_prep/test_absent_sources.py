"""Question and generation sets that are not at hand: `prepare` on made-up files in their native form and place."""

import json

import pytest

from medtune_jax.data_prep.prepare import prepare
from medtune_jax.tasks.rows import read_rows

ROW = {"instruction": "Extract the drug.", "input": "Took axol.", "output": "axol", "source": "umls"}


def question(type, answer):
    return {"id": type, "type": type, "body": "Which?", "exact_answer": answer, "snippets": [{"text": "Seen."}]}


QUESTIONS = {"questions": [question("yesno", "Yes"), question("factoid", ["a", "b"]), question("list", [["a"], ["c"]])]}
CHOICE = {"question": "Which?", "options": dict(zip("ABCD", "wxyz", strict=True)), "answer_idx": "D"}
STATUS = "snippet,active_medications,discontinued_medications,neither_medications\nTook axol.,\"['axol']\",[],[]\n"
# source -> (file in its folder, text, split, (input, output) of the only row)
MADE_UP = {
    "MedQA-4options": (
        "MedQA/phrases_no_exclude_test.jsonl",
        json.dumps(CHOICE),
        "test",
        ("Which?\nA. w\nB. x\nC. y\nD. z", "D"),
    ),
    "BioASQ-yesno": (
        "BioASQ/test/11B1_golden.json",
        json.dumps(QUESTIONS),
        "test",
        ("Seen.\nQuestion: Which?", "yes"),
    ),
    "BioASQ-factoid": (
        "BioASQ/train/training11b.json",
        json.dumps(QUESTIONS),
        "train",
        ("Seen.\nQuestion: Which?", '["a"]'),
    ),
    "BioASQ-list": (
        "BioASQ/test/11B1_golden.json",
        json.dumps(QUESTIONS),
        "test",
        ("Seen.\nQuestion: Which?", '["a", "c"]'),
    ),
    "chatdoctor": ("chatdoctor/HealthCareMagic-100k.json", json.dumps([ROW]), "train", ("Took axol.", "axol")),
    "pmc_llama": ("pmc_llama/release.json", json.dumps([ROW]), "train", ("Took axol.", "axol")),
    "bioinstruct": ("bioinstruct/biomed_instruct_25k.json", json.dumps([ROW]), "train", ("Took axol.", "axol")),
    "iCliniq": ("iCliniq/iCliniq.json", '{"input": "Ill?", "answer_icliniq": "No."}', "test", ("Ill?", "No.")),
    "aci-bench": (
        "aci-bench/clef_taskC_test3.csv",
        "dataset,encounter_id,dialogue,note\naci,D1,Hello.,Well.\n",
        "test3",
        ("Hello.", "Well."),
    ),
    "medication_status": (
        "medication_status/test.csv",
        STATUS,
        "test",
        ("Took axol.", '{"active": ["axol"], "discontinued": [], "neither": []}'),
    ),
    "coreference": (
        "coreference/test.csv",
        "snippet,pronoun,antecedent\nThe man. He.,He,The man\n",
        "test",
        ("The man. He.\nPronoun: He", '["The man"]'),
    ),
}


@pytest.mark.parametrize("source", MADE_UP)
def test_the_native_file_in_its_place_gives_the_row(tmp_path, source):
    file, text, split, expected = MADE_UP[source]
    (tmp_path / "raw" / file).parent.mkdir(parents=True)
    (tmp_path / "raw" / file).write_text(text)
    signed = [name for name in (source,) if name in ("medication_status", "coreference")]
    result = prepare(tmp_path / "rows", raw_dir=tmp_path / "raw", sources=[source], signed=signed)
    (row,) = read_rows(tmp_path / "rows", split)
    assert (row.source, row.input, row.output) == (source, *expected)
    meta = json.loads(row.meta)
    if source in ("pmc_llama", "bioinstruct"):
        assert row.instruction == ROW["instruction"] and "wording" not in meta
        assert meta == ({"subsource": "umls"} if source == "pmc_llama" else {"category": "IE"})
    else:
        assert row.instruction == result["sources"][source]["wordings"][meta["wording"]]

"""The readers of MTS-Dialog and ACI-BENCH."""

import pytest

from medtune_jax.data_prep.readers.dialogues import read_aci_bench, read_mts_dialog
from medtune_jax.errors import UserError
from medtune_jax.tasks.text import TextTask

TASK = TextTask()
MTS = "ID,section_header,section_text,dialogue\r\n"
ACI = "dataset,encounter_id,dialogue,note\n"


@pytest.fixture
def file(tmp_path):
    def writer(text):
        path = tmp_path / "train.csv"
        path.write_bytes(text.encode())
        return path

    return writer


def test_the_section_stands_before_the_conversation(file):
    text = MTS + '7,ROS,"No cough. ","Doctor: Cough?\r\nPatient: No.\r\n"\r\n8,CC, ,Hi\r\n'
    found = read_mts_dialog(file(text), TASK)
    (record,) = found.records
    assert record.annotation == ("Section: ROS\nDoctor: Cough?\nPatient: No.", "No cough.")
    assert (record.id, record.meta) == ("7", {"section": "ROS"})
    assert found.dropped == {"empty section_text": 1}


def test_a_visit_becomes_its_whole_note(file):
    found = read_aci_bench(file(ACI + 'aci,D2N001,"[doctor] hi","CC\n\nCough"\nvirtscribe,D2N002,hi,\n'), TASK)
    (record,) = found.records
    assert record.annotation == ("[doctor] hi", "CC\n\nCough")
    assert (record.id, record.group, record.meta) == ("D2N001", "D2N001", {"dataset": "aci"})
    assert found.dropped == {"empty note": 1}


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (read_mts_dialog, "ID,dialogue\n1,x\n", r"train\.csv:1: no column section_header, section_text; expected ID"),
        (read_mts_dialog, MTS, r"train\.csv: empty, no records of dialogue and section_text"),
        (read_mts_dialog, MTS + '1,CC,"half', r"train\.csv:2: not CSV"),
        (read_aci_bench, ACI + "a,b,c\n", r"train\.csv:2: 4 columns are expected, found 3"),
        (read_aci_bench, MTS, r"train\.csv:1: no column dataset, encounter_id, note"),
    ],
)
def test_bad_files_are_named(file, read, text, said):
    with pytest.raises(UserError, match=said):
        read(file(text), TASK)

"""The CoNLL reader: what it reads, and the line that it names when it cannot."""

import pytest

from medtune_jax.data_prep.readers.conll import read_conll
from medtune_jax.errors import UserError
from medtune_jax.tasks.ner import NerTask

UNTYPED = NerTask()
TYPED = NerTask(("PROBLEM", "TEST"))


@pytest.fixture
def read(tmp_path):
    def reader(text, task=UNTYPED):
        path = tmp_path / "train.tsv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_conll(path, task)

    return reader


def test_sentences_end_at_blank_lines_and_at_the_end_of_the_file(read):
    found = read("a\tB\nb\tI\n\n\nc\tO\n \t\nd:e\tO")
    assert found.annotations == [(("a", "b"), ("B", "I")), (("c",), ("O",)), (("d:e",), ("O",))]
    assert not found.dropped


def test_line_ends_of_windows_a_byte_order_mark_and_odd_white_space_in_tokens_are_read(read):
    found = read(b"\xef\xbb\xbfa\tB\r\n\r\n" + "b\u2028\u00a0\tO\r\n".encode())
    assert found.annotations == [(("a",), ("B",)), (("b\u2028\u00a0",), ("O",))]


def test_typed_tags_are_kept_where_the_task_has_types(read):
    assert read("a\tB-TEST\nb\tI-TEST\nc\tB-PROBLEM\n", TYPED).annotations[0][1] == ("B-TEST", "I-TEST", "B-PROBLEM")


def test_a_single_type_serves_a_task_without_types(read):
    assert read("a\tB-Disease\nb\tI-Disease\nc\tB-Disease\nd\tO\n").annotations[0][1] == ("B", "I", "B", "O")


def test_document_markers_are_dropped_and_counted(read):
    found = read("-DOCSTART-\tO\n\na\tO\n\n###MEDLINE:95369245\n\nb\tO\n-DOCSTART-\tO\n")
    assert [tokens for tokens, _ in found.annotations] == [("a",), ("b", "-DOCSTART-")]
    assert [record.group for record in found.records] == ["1", "95369245"]
    assert found.dropped == {"document marker": 2}


@pytest.mark.parametrize(
    ("text", "task", "said"),
    [
        ("a\tO\nb\tX\n", UNTYPED, r"train\.tsv:2: bad tag 'X'; expected one of O, B, I\."),
        (
            "a\tB\n\nb\tI\n",
            UNTYPED,
            r"train\.tsv:3: orphan 'I' after the start of the sentence; it may only follow B or I",
        ),
        ("a\tO\nb\tI\n", UNTYPED, r"train\.tsv:2: orphan 'I' after O;"),
        (
            "a\tB-TEST\nb\tI-PROBLEM\n",
            TYPED,
            r":2: orphan 'I-PROBLEM' after B-TEST; it may only follow B-PROBLEM or I-PROB",
        ),
        ("a\tB-DRUG\n", TYPED, r":1: bad tag 'B-DRUG'; expected one of O, B-PROBLEM, I-PROBLEM, B-TEST, I-TEST"),
        ("a\tB\n", TYPED, r":1: bad tag 'B'"),
        ("a\tB-DNA\nb\tB-RNA\n", UNTYPED, r":2: second entity type 'RNA' after 'DNA'; this source has a single type"),
        ("a\tO\n\nb\n", UNTYPED, r":3: token<TAB>tag is expected, found 1 column\(s\)\.$"),
        (
            "a O\n",
            UNTYPED,
            r":1: token<TAB>tag is expected, found 1 column\(s\) \(columns must be separated by a tab\)",
        ),
        ("a\tNN\tO\n", UNTYPED, r":1: token<TAB>tag is expected, found 3 column"),
        ("\tO\n", UNTYPED, r":1: token '' is empty"),
        ("a b\tO\n", UNTYPED, r":1: token 'a b' is empty or holds a space"),
        (b"a\tO\ncaf\xe9\tO\n", UNTYPED, r":2: not UTF-8 \(byte 0xe9\); convert"),
        ("", UNTYPED, r"train\.tsv: empty, no sentences"),
        ("\n\n-DOCSTART-\tO\n\n", UNTYPED, r"train\.tsv: empty, no sentences"),
    ],
)
def test_a_malformed_file_is_named_with_its_line_and_what_was_expected(read, text, task, said):
    with pytest.raises(UserError, match=said):
        read(text, task)

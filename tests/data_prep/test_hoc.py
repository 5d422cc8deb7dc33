"""The Hallmarks of Cancer readers: by sentence and by document."""

import pytest

from medtune_jax.data_prep.readers.hoc import read_hoc, read_hoc_documents
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import get_source
from medtune_jax.tasks.sources.classification import HALLMARKS

TASK = get_source("hoc").task
HEADER = "document_id\ttext\tlabels\n"
RCD, PS, TPI = (
    HALLMARKS[name]
    for name in ("resisting cell death", "sustaining proliferative signaling", "tumor promoting inflammation")
)
TEXT = (
    HEADER
    + '11_0\t" Odd " cells lived on .\tresisting cell death|sustaining proliferative signaling\n'
    + "11_1\tNothing else .\tnone\n"
    + "11_2\tThey swelled .\ttumor promoting inflammation\n"
    + "12_0\tA blank .\t\n"
)


@pytest.fixture
def path(tmp_path):
    def writer(text):
        file = tmp_path / "train.tsv"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return writer


def test_sentences_keep_their_quotation_marks_and_labels_come_in_the_order_of_the_task(path):
    found = read_hoc(path(TEXT), TASK)
    assert found.annotations == [
        ('" Odd " cells lived on .', (PS, RCD)),
        ("Nothing else .", ()),
        ("They swelled .", (TPI,)),
        ("A blank .", ()),
    ]
    assert [(record.id, record.group) for record in found.records] == [
        ("11_0", "11"),
        ("11_1", "11"),
        ("11_2", "11"),
        ("12_0", "12"),
    ]


def test_documents_join_their_sentences_in_order_and_their_labels(path):
    found = read_hoc_documents(path(TEXT), TASK)
    assert found.annotations == [
        ('" Odd " cells lived on . Nothing else . They swelled .', (PS, RCD, TPI)),
        ("A blank .", ()),
    ]
    assert [(record.id, record.group) for record in found.records] == [("11", "11"), ("12", "12")]


@pytest.mark.parametrize("read", [read_hoc, read_hoc_documents])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("11_0\tx\tnone\n", r"train\.tsv:1: the header document_id<TAB>text<TAB>labels is expected"),
        ("", r"train\.tsv:1: the header"),
        (HEADER, r"train\.tsv: empty, no document_id"),
        (HEADER + "11_0\tx\tresisting cel death\n", r":2: unknown label 'resisting cel death'\. Did you mean 'resist"),
        (HEADER + "11_0\tx\n", r":2: document_id<TAB>text<TAB>labels is expected, found 2 column"),
        (HEADER + "11_0\t \tnone\n", r":2: .* is expected, found 3 column\(s\) or no text"),
        (HEADER + "11\tx\tnone\n", r":2: id '11' is not of the form document_sentence"),
        (HEADER.encode() + b"11_0\tcaf\xe9\tnone\n", r":2: not UTF-8"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(path, read, text, said):
    with pytest.raises(UserError, match=said):
        read(path(text), TASK)


def test_sentences_of_a_document_that_stand_apart_are_an_error(path):
    with pytest.raises(UserError, match=r":6: sentence 11_3 stands apart"):
        read_hoc_documents(path(TEXT + "11_3\tLate .\tnone\n"), TASK)

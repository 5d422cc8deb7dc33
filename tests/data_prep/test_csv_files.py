"""CSV with a header: texts tidied, every defect with its line."""

import pytest

from medtune_jax.data_prep.readers.csv_files import csv_records
from medtune_jax.errors import UserError


@pytest.fixture
def file(tmp_path):
    def writer(text):
        path = tmp_path / "rows.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return writer


def test_records_are_read_with_line_feeds_and_without_edge_white_space(file):
    records = [*csv_records(file('\ufeffid,text\r\n1," one\r\ntwo\r"\r\n\r\n2,"a ""b"""\r\n'), ("text",))]
    assert [record for _, record in records] == [{"id": "1", "text": "one\ntwo"}, {"id": "2", "text": 'a "b"'}]
    assert records[0][0].endswith("rows.csv:3")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,note\n1,x\n", r"rows\.csv:1: no column text; expected id, text, found id, note"),
        ("", r"rows\.csv:1: no column id, text; expected id, text, found no columns"),
        ("id,text\n1,x,y\n", r"rows\.csv:2: 2 columns are expected, found 3"),
        ('id,text\n1,"half', r"rows\.csv:2: not CSV \(unexpected end of data\); is the file complete\?"),
        (b"id,text\n1,\xff\n", r"rows\.csv:2: not UTF-8"),
    ],
)
def test_a_defect_is_named_with_its_line(file, text, said):
    with pytest.raises(UserError, match=said):
        list(csv_records(file(text), ("id", "text")))

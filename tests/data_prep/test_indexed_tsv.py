"""The reader of sentence and label, as TSV."""

import pytest

from medtune_jax.data_prep.readers.indexed_tsv import read_relation_tsv
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import get_source

RELATION = get_source("sample-relation").task


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


def test_an_index_before_the_sentence_is_its_id(file):
    (record,) = read_relation_tsv(file("index\tsentence\tlabel\n7\tx treats y .\tTreats\n"), RELATION).records
    assert (record.id, record.annotation) == ("7", ("x treats y .", "Treats"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x\tTreats\ny\tTreat\n", r"dev\.txt:2: unknown label 'Treat'\. Did you mean 'Treats'"),
        ("x\tTreats\n\ny\n", r"dev\.txt:3: sentence<TAB>label is expected, found 1 column"),
        ("x\tTreats\nx\ty\tTreats\n", r":2: sentence<TAB>label is expected, found 3 column"),
        (" \tTreats\n", r":1: the sentence is empty"),
        ("sentence\tlabel\n", r"dev\.txt: empty, no sentence<TAB>label lines"),
        (b"\xff\n", r"dev\.txt:1: not UTF-8"),
    ],
)
def test_bad_relation_files_are_named(file, text, said):
    with pytest.raises(UserError, match=said):
        read_relation_tsv(file(text), RELATION)

"""The GAD reader on BioBERT's fold files and BLURB's; instructions and answers of either polarity."""

import json
import re

import pytest

from medtune_jax.data_prep.native import Ask
from medtune_jax.data_prep.prepare import prepare
from medtune_jax.data_prep.readers.gad import read_gad
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import get_source
from medtune_jax.tasks.rows import read_rows
from medtune_jax.tasks.source import Layout

GAD = get_source("GAD")
FOLD = "@GENE$ and @DISEASE$ go together .\t1\n@GENE$ is about , so is @DISEASE$ .\t0\n"


@pytest.fixture
def read(tmp_path):
    def reader(text, split="train", polarity="association"):
        path = tmp_path / "fold.tsv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_gad(path, GAD.task, Ask(split, Layout("gad_tsv", {}), polarity))

    return reader


def labels(found):
    return [label for _, label in found.annotations]


def test_label_1_is_an_association_and_positive(read):
    assert labels(read(FOLD)) == ["Positive", "Negative"]
    assert GAD.task.negative == "Negative"


def test_the_legacy_polarity_is_the_inverse(read):
    assert labels(read(FOLD, polarity="legacy")) == ["Negative", "Positive"]


@pytest.mark.parametrize(("polarity", "association"), [("association", "Positive"), ("legacy", "Negative")])
def test_every_row_is_asked_for_the_word_that_its_answer_uses(tmp_path, polarity, association):
    """Each wording names the word for an association before the word for none."""
    (tmp_path / "GAD").mkdir()
    (tmp_path / "GAD" / "train.tsv").write_text("@GENE$ causes @DISEASE$ .\t1\n@GENE$ is no cause of it .\t0\n" * 20)
    result = prepare(tmp_path / "rows", raw_dir=tmp_path, sources=["GAD"], gad_polarity=polarity)
    rows = read_rows(tmp_path / "rows", "train")
    assert len({row.instruction for row in rows}) == 5
    for row in rows:
        first, second = re.findall("Positive|Negative", row.instruction)
        assert first == association != second
        assert row.output == (first if "causes" in row.input else second)
        assert row.instruction in result["sources"]["GAD"]["wordings"]
        assert json.loads(row.meta).get("gad_polarity", "association") == polarity
    assert result["sources"]["GAD"]["splits"]["train"]["gad_polarity"] == polarity


def test_a_header_with_an_index_and_none_give_the_same_sentences(read):
    lines = FOLD.splitlines()
    indexed = "index\tsentence\tlabel\n" + "".join(f"{number}\t{line}\n" for number, line in enumerate(lines))
    assert read(indexed).annotations == read(FOLD).annotations
    assert [record.id for record in read(indexed).records] == ["0", "1"]


def test_an_empty_development_file_gives_no_rows_and_an_empty_training_file_is_an_error(read):
    assert read("", split="validation").records == []
    with pytest.raises(UserError, match=r"fold\.tsv: empty, no sentence<TAB>label lines"):
        read("")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FOLD + "x\t2\n", r"fold\.tsv:3: unknown label '2'\. Known: 0, 1\."),
        (FOLD + "x\n", r"fold\.tsv:3: sentence<TAB>label is expected, found 1 column"),
        (FOLD + "x\ty\t1\n", r"fold\.tsv:3: sentence<TAB>label is expected, found 3 column"),
        (FOLD + "\t1\n", r"fold\.tsv:3: the sentence is empty"),
        (FOLD + "x\t\n", r"fold\.tsv:3: the label is empty"),
        (FOLD.encode() + b"caf\xe9\t1\n", r"fold\.tsv:3: not UTF-8"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(read, text, said):
    with pytest.raises(UserError, match=said):
        read(text)

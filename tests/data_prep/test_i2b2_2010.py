"""The i2b2 2010 folders, on an invented record, beside BLUE's TSV of the same record."""

import csv

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune_jax.data_prep.readers.i2b2_2010 import read_folders
from medtune_jax.data_prep.readers.indexed_tsv import fields_of, read_blue
from medtune_jax.data_prep.readers.markers import mark
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import get_source

TASK = get_source("i2b2-2010").task
TEXT = """History :
Blue cough was eased by quartz tea , not by a " moon " salve .
 Echo scan shows glass knee .
"""
CONCEPTS = """c="blue cough" 2:0 2:1||t="problem"
c="quartz tea" 2:5 2:6||t="treatment"
c="a " moon " salve" 2:10 2:14||t="treatment"
c="glass knee" 3:4 3:5||t="problem"
c="echo scan" 3:1 3:2||t="test"
"""
RELATIONS = """c="quartz tea" 2:5 2:6||r="TrIP"||c="blue cough" 2:0 2:1
c="quartz tea" 2:5 2:6||r="TrAP"||c="blue cough" 2:0 2:1
c="echo scan" 3:1 3:2||r="TeRP"||c="glass knee" 3:4 3:5
"""
FILES = {"txt/r1.txt": TEXT, "concept/r1.con": CONCEPTS, "rel/r1.rel": RELATIONS}
ROWS = [
    ("r1.con.l0.r1.con.l1", '@problem$ was eased by @treatment$ , not by a " moon " salve .', "TrIP"),
    ("r1.con.l0.r1.con.l1", '@problem$ was eased by @treatment$ , not by a " moon " salve .', "TrAP"),
    ("r1.con.l0.r1.con.l2", "@problem$ was eased by quartz tea , not by @treatment$ .", "No Relations"),
    ("r1.con.l1.r1.con.l2", "Blue cough was eased by @treatment$ , not by @treatment$ .", "No Relations"),
    ("r1.con.l3.r1.con.l4", " @test$ shows @problem$ .", "TeRP"),
]


@pytest.fixture
def write(tmp_path):
    def writer(folder="train", **changes):
        """Writes FILES, each with the (old, new) text of `changes` replaced, where its suffix is named; None leaves
        the file out."""
        for name, text in FILES.items():
            change = changes.get(name[-3:], ("", ""))
            if change is not None:
                path = tmp_path / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text.replace(*change) if change != ("", "") else text, encoding="utf-8")
        return tmp_path / "train"

    return writer


def rows(found):
    return [(record.id.removeprefix("r1."), *record.annotation) for record in found.records]


def test_every_pair_of_a_line_is_a_row_and_a_pair_with_two_relations_is_two(write):
    found = read_folders(write(), TASK)
    assert rows(found) == ROWS
    assert {record.group for record in found.records} == {"r1"} and not found.dropped


def test_both_layouts_of_a_record_give_the_same_rows(write, tmp_path):
    with (tmp_path / "train.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["index", "sentence", "label"])
        writer.writerows((f"r1.{id}", text, "false" if label == "No Relations" else label) for id, text, label in ROWS)
    assert read_blue(tmp_path / "train.tsv", TASK).records == read_folders(write(), TASK).records


def test_parts_of_the_training_set_are_read_in_order_of_name(write):
    write("train/partners")
    assert len(read_folders(write("train/beth"), TASK).records) == 2 * len(ROWS)


def test_the_test_set_is_read_as_distributed_with_its_texts_beside_it(write, tmp_path):
    folder = write()
    (folder / "txt").rename(tmp_path / "test_data")
    (folder / "concept").rename(folder / "concepts")
    assert rows(read_folders(folder, TASK)) == ROWS


def test_a_relation_across_lines_is_dropped_and_counted(write):
    folder = write(rel=('"echo scan" 3:1 3:2||r', '"blue cough" 2:0 2:1||r'))
    found = read_folders(folder, TASK)
    assert found.dropped == {"relation across lines": 1}
    assert rows(found)[-1][2] == "No Relations"


@pytest.mark.parametrize("other", [(2, 7, "test"), (8, 12, "test"), (12, 13, "test")])
def test_concepts_that_overlap_or_touch_become_one_marker(other):
    assert mark("a glass knee, x", (2, 12, "problem"), other).replace(",", "") == "a @problem-test$ x"


@settings(deadline=None)
@given(st.text(min_size=4, max_size=20), st.data())
def test_marking_does_not_depend_on_the_order_of_entities_apart(text, data):
    a, b, c, d = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=4, max_size=4, unique=True)))
    one, other = (a, b, "x"), (c, d, "y")
    assert mark(text, one, other) == mark(text, other, one) == f"{text[:a]}@x${text[b:c]}@y${text[d:]}"


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8")), min_size=2, max_size=3))
def test_fields_that_csv_wrote_are_read_back(fields):
    class Line:
        text = ""

        def write(self, text):
            self.text += text

    line = Line()
    csv.writer(line, delimiter="\t", lineterminator="").writerow(fields)
    assert fields_of(line.text) == fields


def test_a_plain_sentence_that_begins_with_a_quotation_mark_is_left_as_it_is():
    assert fields_of('" Moon " salve\t1') == ['" Moon " salve', "1"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"con": None}, r"concept/?: no such folder; it holds the \.con files"),
        ({"con": ('||t="test"', "")}, r'r1\.con:5: c="text" line:token line:token\|\|t="problem" is expected'),
        ({"con": ('"test"', '"tst"')}, r"r1\.con:5: unknown type 'tst'\. Did you mean 'test'"),
        ({"con": ("3:1 3:2", "9:1 9:2")}, r"r1\.con:5: line 9 is beyond the 4 lines of the text"),
        ({"con": ("3:1 3:2", "3:1 3:22")}, r"r1\.con:5: tokens 1 to 22 are not in line 3, which has 7"),
        ({"con": ("3:1 3:2", "2:1 3:2")}, r"r1\.con:5: a concept of one line is expected, found 2 to 3"),
        ({"con": ("3:1 3:2", "3:2 3:3")}, r"r1\.con:5: 'echo scan' is expected at 3:2, the text has 'scan shows'"),
        ({"con": ('c="glass knee" 3:4 3:5||t="problem"\n', "")}, r'r1\.rel:3: no concept "glass knee" at 3:4'),
        ({"rel": ("TeRP", "TeXP")}, r"r1\.rel:3: unknown label 'TeXP'\. Did you mean 'TeRP'"),
        ({"rel": ('"glass knee" 3:4 3:5', "")}, r'r1\.rel:3: c="text" .*\|\|r="TrAP".* is expected'),
        ({"rel": ("3:4 3:5", "7:4 7:5")}, r"r1\.rel:3: line 7 is beyond"),
    ],
)
def test_a_malformed_file_is_named_with_its_line_and_what_was_expected(write, changes, said):
    with pytest.raises(UserError, match=said):
        read_folders(write(**changes), TASK)


def test_a_document_that_lacks_a_file_is_named(write):
    folder = write()
    (folder / "concept" / "r2.con").write_text("")
    with pytest.raises(UserError, match=r"txt/r2\.txt: no such file, but there is .*concept/r2\.con"):
        read_folders(folder, TASK)


def test_a_text_in_another_encoding_is_named(write):
    folder = write()
    (folder / "txt" / "r1.txt").write_bytes(b"a\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"r1\.txt:2: not UTF-8"):
        read_folders(folder, TASK)


def test_a_folder_of_something_else_and_a_file_are_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="no folder rel in it"):
            read_folders(path, TASK)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("index\tsentence\tlabel\n1\tx\tTrXP\n", r":2: unknown label 'TrXP'\. Did you mean"),
        ("index\tsentence\tlabel\n1\tx\tfalse\n2\tfalse\n", r":3: index<TAB>sentence<TAB>label is expected, found 2"),
        ("index\tsentence\tlabel\n1\tx\t\n", r":2: the label is empty"),
        ("index\tsentence\tlabel\n1\t \tfalse\n", r":2: the sentence is empty"),
        ('index\tsentence\tlabel\n1\t"x\tfalse\n2\tcut', r":3: index<TAB>sentence<TAB>label is expected"),
        ("index\tsentence\tlabel\n", r"train\.tsv: empty, no index"),
        ("x\n", r":1: index<TAB>sentence<TAB>label is expected, found 1"),
    ],
)
def test_a_malformed_tsv_is_named_with_its_line(tmp_path, text, said):
    (tmp_path / "train.tsv").write_text(text)
    with pytest.raises(UserError, match=said):
        read_blue(tmp_path / "train.tsv", TASK)


def test_a_constant_negative_answer_has_the_accuracy_of_the_papers_and_no_f1():
    # The 43,000 rows that the authors score hold 36,707 without a relation.
    totals = {f"confusion:{gold}:{found}": 0 for gold in TASK.labels for found in (*TASK.labels, "")}
    totals |= {"rows": 43000, "unparsable": 0, "confusion:No Relations:No Relations": 36707}
    totals |= {"confusion:TeRP:No Relations": 43000 - 36707}
    scores = TASK.metrics(totals)
    assert round(100 * float(scores["accuracy"]), 2) == 85.37 and scores["f1_positive"] == 0
    assert TASK.metric == "f1_positive"

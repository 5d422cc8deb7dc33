"""Tables with named columns: every task is read from every kind of file, and what is wrong is named with its line."""

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtune_jax.data_prep.native import Ask
from medtune_jax.data_prep.readers import READERS
from medtune_jax.data_prep.readers.table import read_table
from medtune_jax.errors import UserError
from medtune_jax.tasks.choice import ChoiceTask
from medtune_jax.tasks.classification import LabelTask, NliTask
from medtune_jax.tasks.extract import ExtractTask
from medtune_jax.tasks.labels import LabelsTask
from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.registry import SOURCES
from medtune_jax.tasks.source import Layout
from medtune_jax.tasks.sources.classification import HALLMARKS
from medtune_jax.tasks.text import TextTask

RELATION = LabelTask("relation", ("Treats", "None"), negative="None")
# Task -> (rows of a file, the annotations that they are).
EXAMPLES = [
    (NerTask(), [{"tokens": ["a", "gout"], "tags": ["O", "B"]}], [(("a", "gout"), ("O", "B"))]),
    (RELATION, [{"input": "a b", "label": "treats"}], [("a b", "Treats")]),
    (NliTask(), [{"premise": "p", "hypothesis": "h", "label": "NEUTRAL"}], [("p", "h", "Neutral")]),
    (LabelsTask(("X", "Y")), [{"input": "i", "labels": ["Y", "X"]}], [("i", ("X", "Y"))]),
    (ChoiceTask(), [{"question": "q", "options": ["u", "v"], "answer": "B"}], [("q", ("u", "v"), "B")]),
    (ExtractTask(), [{"input": "i", "items": ["u", "v"]}], [("i", ((("u",), ("v",)),))]),
    (ExtractTask(("a", "b")), [{"input": "i", "a": ["u"], "b": []}], [("i", ((("u",),), ()))]),
    (TextTask(), [{"input": "", "output": "o\np"}], [("", "o\np")]),
]


def read(path, task, **layout):
    return read_table(path, task, Ask("train", Layout("table", {}, **layout)))


def write(path, rows):
    """Writes rows (dicts of strings, numbers and lists) in the form that the path's ending says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: json.dumps(cell) if isinstance(cell, list) else cell for key, cell in row.items()} for row in rows
        )
        path.write_text(out.getvalue())
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl", ".csv"])
@pytest.mark.parametrize(("task", "rows", "annotations"), EXAMPLES)
def test_every_task_is_read_from_every_kind_of_file(tmp_path, suffix, task, rows, annotations):
    separators = {"separator": "\0"} if task.kind == "ner" and suffix == ".csv" else {}
    if separators:
        rows = [{key: "\0".join(cell) for key, cell in row.items()} for row in rows]
    assert read(write(tmp_path / f"x{suffix}", rows), task, **separators).annotations == annotations


def test_a_tsv_takes_quotation_marks_as_they_stand_unless_the_cell_is_quoted_as_csv_does(tmp_path):
    (tmp_path / "x.tsv").write_text('input\tlabel\n"a" and "b\tTreats\r\n"say ""a"""\tNone\n\n')
    assert read(tmp_path / "x.tsv", RELATION).annotations == [('"a" and "b', "Treats"), ('say "a"', "None")]


def test_columns_have_the_names_that_the_layout_says_and_ids_groups_and_instructions_only_then(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"id": 7, "note": 3, "text": "a b", "y": "None", "ask": "Do."}])
    columns = {"input": "text", "label": "y"}
    (plain,) = read(path, RELATION, columns=columns).records
    assert (plain.annotation, plain.id, plain.group, plain.instruction) == (("a b", "None"), "", "", "")
    (full,) = read(path, RELATION, columns=columns | {"id": "id", "group": "note", "instruction": "ask"}).records
    assert (full.id, full.group, full.instruction) == ("7", "3", "Do.")


@pytest.mark.parametrize(("cell", "label"), [(1, "Treats"), (0, "None"), ("1", "Treats"), (1.0, "Treats")])
def test_numbers_stand_for_labels_by_label_names(tmp_path, cell, label):
    path = write(tmp_path / "x.jsonl", [{"input": "a", "label": cell}])
    assert read(path, RELATION, label_names={"1": "Treats", "0": "None"}).annotations == [("a", label)]


def test_truth_values_stand_for_labels_as_json_writes_them(tmp_path):
    path = write(tmp_path / "x.parquet", [{"input": "a", "label": True}, {"input": "b", "label": False}])
    found = read(path, RELATION, label_names={"true": "Treats", "False": "None"}).annotations
    assert found == [("a", "Treats"), ("b", "None")]


def test_tags_may_be_numbers(tmp_path):
    path = write(tmp_path / "x.parquet", [{"tokens": ["a", "b", "c"], "tags": [0, 1, 2]}])
    found = read(path, NerTask(), label_names={"0": "O", "1": "B", "2": "I"}).annotations
    assert found == [(("a", "b", "c"), ("O", "B", "I"))]


@pytest.mark.parametrize(
    ("form", "answer"), [("letter", "B"), ("index0", 1), ("index0", "1"), ("index1", 2), ("text", "two  words")]
)
def test_an_answer_is_a_letter_an_index_or_the_option_itself(tmp_path, form, answer):
    row = {"question": "q", "options": ["one", "two words", "three"], "answer": answer}
    (found,) = read(write(tmp_path / "x.jsonl", [row]), ChoiceTask(), answer_form=form).annotations
    assert found == ("q", ("one", "two words", "three"), "B")


def test_options_stand_in_a_list_an_object_or_a_column_each_of_which_the_last_may_be_empty(tmp_path):
    rows = [{"question": "q", "options": {"A": "u", "B": "v"}, "answer": "A"}]
    assert read(write(tmp_path / "x.jsonl", rows), ChoiceTask()).annotations == [("q", ("u", "v"), "A")]
    rows = [{"question": "q", "opa": "u", "opb": "v", "opc": "", "answer": "A"}]
    columns = {"A": "opa", "B": "opb", "C": "opc"}
    path = write(tmp_path / "x.csv", rows)
    assert read(path, ChoiceTask(), columns=columns).annotations == [("q", ("u", "v"), "A")]


def test_items_have_synonyms_and_a_single_answer_may_be_plain_text(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"input": "i", "items": [["u", "v"], "w"]}])
    assert read(path, ExtractTask()).annotations == [("i", ((("u", "v"), ("w",)),))]
    path = write(tmp_path / "x.csv", [{"input": "i", "items": "a plain answer"}])
    assert read(path, ExtractTask(single=True)).annotations == [("i", ((("a plain answer",),),))]


@pytest.mark.parametrize("cell", ["", "none", "None", [], None])
def test_a_document_without_labels_has_none(tmp_path, cell):
    path = write(tmp_path / "x.jsonl", [{"input": "i", "labels": cell}])
    assert read(path, LabelsTask(("X", "Y")), separator="|").annotations == [("i", ())]


NER, CHOICE, LABELS = NerTask(), ChoiceTask(), LabelsTask(("X", "Y"))
MISTAKES = [
    (RELATION, {"input": "a", "label": "Treat"}, {}, r"x.jsonl:2: unknown label 'Treat'. Did you mean 'Treats'"),
    (RELATION, {"input": " ", "label": "None"}, {}, "x.jsonl:2: input is empty"),
    (RELATION, {"input": 3, "label": "None"}, {}, "input must be text, found int"),
    (RELATION, {"input": "a", "label": None}, {}, "label must be one value, found NoneType"),
    (
        RELATION,
        {"input": "a", "lable": "None"},
        {},
        r"no column 'label'; name it .* as label = .* Did you mean 'lable'",
    ),
    (NER, {"tokens": "a b", "tags": "O"}, {}, "2 tokens and 1 tags"),
    (NER, {"tokens": "a b", "tags": "O I"}, {}, "orphan 'I' at 'b'"),
    (NER, {"tokens": "a", "tags": "X"}, {}, "unknown tag 'X'"),
    (NER, {"tokens": ["a b"], "tags": ["O"]}, {}, "token 'a b' is empty or holds a space"),
    (NER, {"tokens": [1], "tags": ["O"]}, {}, "token 1 must be text"),
    (LABELS, {"input": "a", "labels": "X|Y"}, {}, "labels must be a list; .*separator"),
    (LABELS, {"input": "a", "labels": 3}, {}, "labels must be a list, found int"),
    (CHOICE, {"question": "q", "options": ["u"], "answer": "A"}, {}, "2 to 26 options"),
    (CHOICE, {"question": "q", "options": ["u", "v"], "answer": "C"}, {}, "answer 'C' is not one of A, B; .*letter"),
    (CHOICE, {"question": "q", "options": ["u", "u"], "answer": "u"}, {"answer_form": "text"}, "answer 'u' is not"),
    (ExtractTask(), {"input": "i", "items": [[]]}, {}, "items: an item is a name"),
    (ExtractTask(ranked=True), {"input": "i", "items": []}, {}, "at least one is needed"),
    (TextTask(), {"input": "i", "output": ""}, {}, "output is empty"),
    (TextTask(), {"input": "i", "output": "o", "id": [1]}, {"columns": {"id": "id"}}, "id must be text or a number"),
    (TextTask(), {"input": "i", "output": "o", "q": ""}, {"columns": {"instruction": "q"}}, "instruction is empty"),
]


@pytest.mark.parametrize(("task", "row", "layout", "said"), MISTAKES)
def test_what_is_wrong_is_named_with_its_line(tmp_path, task, row, layout, said):
    (tmp_path / "x.jsonl").write_text("\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=said):
        read(tmp_path / "x.jsonl", task, **layout)


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("x.xlsx", b"", r"x\.xlsx: the name of a table must end in \.tsv, \.csv, \.json, \.jsonl, \.parquet"),
        ("x.tsv", b"input\tlabel\na\tNone\nb\n", r"x\.tsv:3: 2 columns are expected, found 1"),
        ("x.csv", b"input,label\na,None\nb\n", r"x\.csv:3: 2 columns are expected, found 1"),
        ("x.tsv", b"input\tlabel\nb\xe9\tNone\n", r"x\.tsv:2: not UTF-8"),
        ("x.jsonl", b'{"input": "a", "label": "None"}\n{"inp', r"x\.jsonl:2: not JSON"),
        ("x.json", b'[{"input": "a", "label": "None"}', r"x\.json:1: .*half-written"),
        ("x.parquet", b"PAR1", r"x\.parquet cannot be read as parquet"),
        ("x.tsv", b"input\tlabel\n", r"x\.tsv: empty, no rows in it"),
        ("x.tsv", b"", r"x\.tsv: empty, no rows in it"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, name, raw, said):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=said):
        read(tmp_path / name, RELATION)


def test_a_wrong_row_of_parquet_is_named_by_its_number(tmp_path):
    path = write(tmp_path / "x.parquet", [{"input": "a", "label": "None"}, {"input": "a", "label": "none of them"}])
    with pytest.raises(UserError, match=r"x\.parquet, row 2: unknown label 'none of them'"):
        read(path, RELATION)


CELLS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.text(max_size=3))
WORDS = (
    "tokens",
    "tags",
    "input",
    "label",
    "premise",
    "hypothesis",
    "labels",
    "question",
    "options",
    "answer",
    "items",
)


@given(
    st.sampled_from([task for task, *_ in EXAMPLES]), st.fixed_dictionaries({}, optional=dict.fromkeys(WORDS, CELLS))
)
def test_any_object_is_read_as_the_task_renders_it_or_refused_by_name(tmp_path_factory, task, row):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(row))
    try:
        (record,) = read(path, task).records
    except UserError as error:
        assert str(error).startswith(f"{path}:")
    else:
        input, output = task.render(record.annotation)
        assert task.gold(output, input, task.facts(record.annotation)).annotation == record.annotation


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("GAD", {"columns": {"input": "sentence"}, "label_names": {"1": "Positive", "0": "Negative"}}),
        ("hoc", {"columns": {"input": "text"}, "label_names": HALLMARKS, "separator": "|"}),
    ],
)
def test_a_real_corpus_reads_as_a_table_as_its_own_reader_reads_it(shared_data, name, layout):
    path, source = shared_data / "raw" / name / "test.tsv", SOURCES[name]
    own = source.layouts[0]
    expected = READERS[own.format](path, source.task, Ask("test", own))
    assert read(path, source.task, **layout).annotations == expected.annotations

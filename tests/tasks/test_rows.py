"""Rows on disk: what is read from where, what is refused, and that bytes and hashes are fixed."""

import hashlib
import json
from dataclasses import replace

import pytest

from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import SOURCES
from medtune_jax.tasks.rows import MissingSplit, Row, gold_sha256, read_rows, rows_sha256, write_rows

ROWS = [
    Row("do", "a b", "a : B\nb : O", "NCBI-disease", "NCBI-disease/test/0", "doc", '{"wording": 1}'),
    Row("do", "Zwölf\u2028\t", "", "sample-nli"),
]


@pytest.fixture
def folder(tmp_path):
    write_rows(tmp_path / "test.parquet", ROWS)
    return tmp_path


def test_rows_come_back_as_written(folder):
    assert read_rows(folder, "test") == read_rows(folder / "test.parquet") == read_rows(folder) == ROWS
    assert read_rows(folder, "test", ["sample-nli"]) == ROWS[1:]


def test_the_same_rows_give_the_same_bytes(folder):
    write_rows(folder / "again.parquet", ROWS)
    assert (folder / "again.parquet").read_bytes() == (folder / "test.parquet").read_bytes()


def test_jsonl_and_csv_are_read_with_nulls_as_empty_and_meta_objects_as_json(tmp_path):
    records = [
        {"instruction": None, "input": "a\u2028b", "output": "x", "source": "s", "id": 3, "meta": {"b": 1, "a": "é"}},
        {"instruction": "i", "input": "", "output": "y", "source": "s"},
    ]
    (tmp_path / "x.jsonl").write_text("\r\n".join(map(json.dumps, records)) + "\n\n", encoding="utf-8")
    expected = [Row("", "a\u2028b", "x", "s", "3", "", '{"a": "é", "b": 1}'), Row("i", "", "y", "s")]
    assert read_rows(tmp_path / "x.jsonl") == expected
    (tmp_path / "y.csv").write_text('source,instruction,input,output\ns,i,"a\u2028\nb",c\n', encoding="utf-8")
    assert read_rows(tmp_path / "y.csv") == [Row("i", "a\u2028\nb", "c", "s")]


def test_gold_hash_covers_inputs_and_outputs_in_order_and_nothing_else():
    other = [replace(row, instruction="other", id="x", group="", meta="") for row in ROWS]
    assert gold_sha256(other) == gold_sha256(ROWS)
    assert rows_sha256(other) != rows_sha256(ROWS)
    assert gold_sha256(ROWS[::-1]) != gold_sha256(ROWS)
    # Neither the border between input and output nor that between rows can move unseen.
    assert gold_sha256([Row("", "ab", "c", "")]) != gold_sha256([Row("", "a", "bc", "")])
    by_hand = hashlib.sha256(b"\x02" + bytes(7) + b"ab" + b"\x02" + bytes(7) + "é".encode()).hexdigest()
    assert gold_sha256([Row("", "ab", "é", "")]) == by_hand


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "No data at nowhere"),
        (("{}", "train"), "There is no split 'train'.* holds: test"),
        (("{}", "test", ["NCBI-diseas"]), "no rows of source 'NCBI-diseas'. Did you mean 'NCBI-disease'"),
        (("{}/bad.parquet",), "bad.parquet cannot be read as parquet"),
        (("{}/bad.txt",), "bad.txt is not a data file"),
        (("{}/empty",), "empty holds no train/validation/test"),
        (("{}/two",), "Which split?.* holds: test, train"),
        (("{}/few.jsonl",), "few.jsonl:2 lacks output; it has instruction, input, source"),
        (("{}/json.jsonl",), "json.jsonl:1: not JSON"),
        (("{}/list.jsonl",), "list.jsonl:1: a JSON object is expected, found list"),
        (("{}/number.jsonl",), "row 1: column 'output' must be a string, found int"),
        (("{}/none.jsonl",), "none.jsonl has no rows"),
        (("{}/latin.csv",), r"latin.csv:2: not UTF-8 \(byte 0xe9\)"),
        (("{}/columns.csv",), "columns.csv lacks instruction, source; it has input, output"),
    ],
)
def test_bad_data_is_named(tmp_path, arguments, said):
    write_rows(tmp_path / "test.parquet", ROWS)
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for split in ("train", "test"):
        write_rows(tmp_path / "two" / f"{split}.parquet", ROWS)
    good = {"instruction": "", "input": "", "output": "", "source": ""}
    few = {key: "" for key in good if key != "output"}
    for name, text in {
        "bad.parquet": "PAR1",
        "bad.txt": "",
        "few.jsonl": f"{json.dumps(good)}\n{json.dumps(few)}",
        "json.jsonl": "{",
        "list.jsonl": "[]",
        "number.jsonl": json.dumps({**good, "output": 1}),
        "none.jsonl": "\n",
        "columns.csv": "input,output\n,\n",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.csv").write_bytes(b"instruction,input,output,source\ncaf\xe9,,,\n")
    path, *rest = arguments
    if path == "{}":  # bad neighbours would be splits too
        path = tmp_path / "only"
        path.mkdir()
        write_rows(path / "test.parquet", ROWS)
    with pytest.raises(UserError, match=said):
        read_rows(str(path).format(tmp_path), *rest)


def test_missing_columns_of_parquet_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"input": ["a"], "output": ["b"], "source": ["c"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="lacks instruction; it has input, output, source"):
        read_rows(tmp_path / "x.parquet")


def test_a_hub_name_without_split_is_refused_before_any_download():
    with pytest.raises(UserError, match="Which split of the hub data set owner/name"):
        read_rows("hf://owner/name")


@pytest.fixture
def hub(monkeypatch):
    """Returns the (name, split) pairs asked of the hub, which holds ROWS as its train split."""
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if split != "train":
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['train'].")
        return datasets.Dataset.from_list([vars(row) for row in ROWS])

    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_mistyped_local_path_is_not_asked_of_the_hub(hub):
    with pytest.raises(UserError, match=r"No data at rows/ncbi.*hf://owner/name"):
        read_rows("rows/ncbi", "train")
    assert not hub


def test_a_hub_data_set_is_read_by_its_prefix_alone(hub):
    assert read_rows("hf://owner/name", "train") == ROWS
    assert hub == [("owner/name", "train")]
    with pytest.raises(MissingSplit, match="no split 'test' in the hub data set owner/name"):
        read_rows("hf://owner/name", "test")
    with pytest.raises(UserError, match="does not name a hub data set"):
        read_rows("hf://name", "train")


def test_sources_are_kept_by_any_of_their_names(tmp_path):
    rows = [Row("i", "a", "b", name) for name in ("NCBI-disease", "ncbi-DISEASE", "ward-notes", "Ward-notes")]
    write_rows(tmp_path / "test.parquet", rows)
    source = SOURCES["NCBI-disease"]
    for name in (source.name, source.name.upper(), *source.aliases):
        assert read_rows(tmp_path, "test", [name]) == rows[:2]
    assert read_rows(tmp_path, "test", ["ward-notes"]) == rows[2:3]


def test_shards_as_the_hub_names_them_are_one_split_in_their_order_also_under_data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in (("00000-of-00002", ROWS[1:]), ("00001-of-00002", ROWS[:1])):
        write_rows(folder / f"train-{name}.parquet", rows)
    write_rows(folder / "test-00000-of-00001-0a1b2c.parquet", ROWS)
    for place in (tmp_path, folder):
        assert read_rows(place, "train") == ROWS[::-1]
        assert read_rows(place, "test") == ROWS
        with pytest.raises(MissingSplit, match="holds: test, train"):
            read_rows(place, "validation")


@pytest.mark.parametrize("names", [["00001-of-00002"], ["00000-of-00001", "00000-of-00002"], ["00000-of-00002", ""]])
def test_a_missing_or_foreign_shard_is_named(tmp_path, names):
    for name in names:
        write_rows(tmp_path / f"train{'-' * bool(name)}{name}.parquet", ROWS)
    with pytest.raises(UserError, match=r"split 'train' must be \d+ shards, each once; found train"):
        read_rows(tmp_path, "train")


def test_rows_without_a_source_say_how_to_mend_it(tmp_path):
    (tmp_path / "x.csv").write_text("instruction,input,output\n,,\n")
    with pytest.raises(UserError, match=r"x\.csv lacks the column source, .* --source_file"):
        read_rows(tmp_path / "x.csv")


def test_a_hub_data_set_of_one_source_needs_no_source_column(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = [{"instruction": "i", "input": "a", "output": "b"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list(rows))
    assert read_rows("hf://bio-nlp-umass/BioInstruct", "train") == [Row("i", "a", "b", "bioinstruct")]
    assert SOURCES["bioinstruct"].task.kind == "text"
    with pytest.raises(UserError, match="lacks the column source"):
        read_rows("hf://owner/name", "train")

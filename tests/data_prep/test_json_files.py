"""JSON files, read in pieces: the same objects whatever the pieces, and every defect with its line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtune_jax.data_prep.readers import json_files
from medtune_jax.data_prep.readers.json_files import json_object, json_objects, text_at
from medtune_jax.errors import UserError

OBJECTS = st.lists(
    st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.integers() | st.lists(st.integers(), max_size=3)),
    max_size=5,
)


@pytest.fixture
def file(tmp_path):
    def writer(text):
        path = tmp_path / "rows.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return writer


@given(objects=OBJECTS, indent=st.sampled_from([None, 0, 2]), lines=st.booleans(), piece=st.integers(1, 40))
def test_objects_are_those_written_whatever_the_form_and_the_size_of_the_pieces(
    tmp_path_factory, objects, indent, lines, piece
):
    path = tmp_path_factory.mktemp("json") / "rows.json"
    text = "\n".join(map(json.dumps, objects)) if lines else json.dumps(objects, indent=indent)
    path.write_text("\ufeff" + text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "_CHUNK", piece)
        assert [value for _, value in json_objects(path)] == objects


def test_an_object_knows_its_line(file):
    path = file('[\n  {"a": "x\\ny"},\n\n  {\n    "b": 2\n  }, {"c": 3}\n]\n')
    assert [where.rsplit(":", 1)[1] for where, _ in json_objects(path)] == ["2", "4", "6"]


@pytest.mark.parametrize("piece", [3, 1 << 20])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a": 1},\n', r"rows\.json:2: the file ends inside its list; it seems half-written"),
        ('[{"a": 1},\n{"b": ', r"rows\.json:2: not JSON \(Expecting value\); is the file complete\?"),
        ('{"a": 1}\n{"b": 2\n', r"rows\.json:3: not JSON"),
        ('[{"a": 1}\n {"b": 2}]', r"rows\.json:2: not JSON \(a comma is expected"),
        ('[{"a": 1}]\n{"b": 2}', r"rows\.json:2: not JSON \(text after the end of the list"),
        ('{"a": 1}\n[2]', r"rows\.json:2: a JSON object is expected, found list"),
        ('["a"]', r"rows\.json:1: a JSON object is expected, found str"),
        (b'{"a": 1}\n{"b": "\xe9"}', r"rows\.json:2: not UTF-8 \(byte 0xe9\)"),
    ],
)
def test_a_defect_is_named_with_its_line(file, monkeypatch, text, said, piece):
    monkeypatch.setattr(json_files, "_CHUNK", piece)
    with pytest.raises(UserError, match=said):
        list(json_objects(file(text)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json cannot be read: No such file"):
        list(json_objects(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("text", "said"),
    [('{"a": 1,\n', r"rows\.json:2: not JSON"), ("[]", r"rows\.json: a JSON object is expected, found list")],
)
def test_a_file_of_one_object_is_one_object(file, text, said):
    with pytest.raises(UserError, match=said):
        json_object(file(text))


def test_half_a_surrogate_pair_is_replaced_and_a_whole_one_kept(file):
    ((where, value),) = json_objects(file(r'{"a": "\ud83d\ude00 \ud83d"}'))
    assert text_at(value, "a", where, "a text") == "\U0001f600 \ufffd"

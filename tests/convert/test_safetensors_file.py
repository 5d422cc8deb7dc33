"""Files are read as the safetensors library writes them, and a damaged one is named, never half-read."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from medtune_jax.convert import safetensors_file
from medtune_jax.convert.safetensors_file import find_tensors, read_header, read_rows, row_blocks
from medtune_jax.errors import UserError

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
REUSED_FOLDER = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, header: object, data: bytes = b"", padding: bytes = b"") -> Path:
    text = (header if isinstance(header, bytes) else json.dumps(header).encode()) + padding
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, stop: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=2)))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).standard_normal(shape).astype(draw(st.sampled_from(DTYPES)))


@REUSED_FOLDER
@given(st.dictionaries(st.text(min_size=1, max_size=12), arrays(), min_size=1, max_size=5), st.data())
def test_what_the_library_writes_is_read_back_by_any_range_of_rows_and_columns(
    tmp_path: Path, tensors: dict[str, np.ndarray], data: st.DataObject
) -> None:
    tensors.pop("__metadata__", None)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = find_tensors(tmp_path)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        first = data.draw(st.integers(0, len(array)))
        last = data.draw(st.integers(first, len(array)))
        rows = read_rows(found[name], first, last)
        assert (found[name].shape, rows.dtype) == (array.shape, array.dtype)
        assert rows.tobytes() == array[first:last].tobytes()
        if array.ndim == 2:
            left = data.draw(st.integers(0, array.shape[1] - 1))
            right = data.draw(st.integers(left + 1, array.shape[1]))
            part = read_rows(found[name], first, last, (left, right))
            assert (part.shape, part.tobytes()) == (
                (last - first, right - left),
                array[first:last, left:right].tobytes(),
            )


@REUSED_FOLDER
@given(st.integers(0, 10**6))
def test_a_file_cut_anywhere_is_an_error_that_names_it(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones((3, 5), np.float32), "b": np.ones(7, np.float16)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % len(whole)])
    with pytest.raises(UserError, match=r"model.safetensors is (cut off|not a safetensors)"):
        find_tensors(tmp_path)


def test_a_cut_file_names_the_tensor_that_is_incomplete(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"first": entry(0, 8), "second": entry(8, 40)}, bytes(20))
    with pytest.raises(UserError, match="second needs byte"):
        read_header(path)


@pytest.mark.parametrize(
    ("header", "size", "words"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "b at byte .* overlaps"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, 20, "b at byte .* hole"),
        ({"a": entry(0, 8)}, 12, "4 bytes belong to no tensor"),
        ({"a": entry(0, 8, [3])}, 8, r"a \[3\] F32 does not fill 8 bytes"),
        ({"a": entry(8, 0)}, 8, "entry of a makes no sense"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "entry of a makes no sense"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, 8, "entry of a makes no sense"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, "8"]}}, 8, "entry of a makes no sense"),
        ({"a": 3}, 8, "entry of a makes no sense"),
        ([1, 2], 8, "header is not a JSON object"),
        (b"{'a': 1}", 8, "header is not JSON"),
        (b"\xff\xfe{}", 8, "header is not JSON"),
    ],
)
def test_a_header_that_contradicts_itself_or_the_file_is_an_error(
    header: object, size: int, words: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "model.safetensors", header, bytes(size))
    with pytest.raises(UserError, match=words) as error:
        read_header(path)
    assert str(path) in str(error.value)


def test_a_header_longer_than_the_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match="not a safetensors file"):
        read_header(path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"a": entry(0, 40)}, bytes(40))
    tensor = read_header(path)["a"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"ended at byte .* while a was read"):
        read_rows(tensor, 0, 10)


def index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_missing_file_of_several_is_named_with_a_tensor_that_it_holds(tmp_path: Path) -> None:
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "one.safetensors")
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(UserError, match=r"two.safetensors is missing; .* holds b"):
        find_tensors(tmp_path)


def test_an_index_that_disagrees_with_its_files_is_an_error(tmp_path: Path) -> None:
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "one.safetensors")
    index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors"})
    with pytest.raises(UserError, match=r"one.safetensors does not hold b"):
        find_tensors(tmp_path)


def test_an_index_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    index(tmp_path, {"a": "../one.safetensors"})
    with pytest.raises(UserError, match="points outside"):
        find_tensors(tmp_path)


@pytest.mark.parametrize("weight_map", [["a"], None, 3])
def test_an_index_without_a_map_is_an_error(weight_map: object, tmp_path: Path) -> None:
    index(tmp_path, weight_map)
    with pytest.raises(UserError, match="weight_map"):
        find_tensors(tmp_path)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model-00001-of-00002.bin.*save_pretrained"):
        find_tensors(tmp_path)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.safetensors nor model.safetensors.index.json"):
        find_tensors(tmp_path)


@given(st.integers(1, 50), st.integers(1, 5), st.integers(1, 200), st.data())
def test_row_blocks_cover_each_row_once_within_the_limit(
    rows: int, columns: int, limit: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, rows))
    last = data.draw(st.integers(first, rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors_file, "BLOCK_BYTES", limit)
        blocks = list(row_blocks((rows, columns), 4, first, last))
    assert [row for block in blocks for row in range(*block)] == list(range(first, last))
    assert all((stop - start) * columns * 4 <= limit or stop - start == 1 for start, stop in blocks)

"""safetensors files read by byte range: 8 bytes of header length, a JSON header, then the tensors' bytes.

Format: https://huggingface.co/docs/safetensors (little-endian, row-major, no holes). Every file is checked against its
own header before a tensor is read, so that a cut-off download is named as such and never becomes weights.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from medtune_jax.errors import UserError

BLOCK_BYTES = 8 << 20  # what one read or write holds; more is no faster, and the allocator keeps several
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOAT_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_MAX_HEADER = 100_000_000  # the format's own limit
_AGAIN = "Download or copy the file again."


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: bytes [start, stop) of `path`, row-major."""

    name: str
    path: Path
    dtype: str  # the format's name: "F32", "BF16", "I64", ...
    shape: tuple[int, ...]
    start: int
    stop: int


def find_tensors(folder: Path) -> dict[str, Tensor]:
    """Returns name -> Tensor for a checkpoint folder: one file, or several behind an index.

    Raises:
      UserError: there are no safetensors, a file is missing or damaged, or index and files disagree.
    """
    if (folder / SINGLE_FILE).is_file():
        return read_header(folder / SINGLE_FILE)
    if not (folder / INDEX_FILE).is_file():
        raise UserError(_no_weights(folder))
    files = _read_index(folder / INDEX_FILE)
    headers: dict[str, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for name, file in files.items():
        if Path(file).name != file:
            raise UserError(f"{folder / INDEX_FILE} points outside its folder: '{file}' for {name}.")
        if file not in headers:
            if not (folder / file).is_file():
                raise UserError(f"{folder / file} is missing; {INDEX_FILE} says that it holds {name}. {_AGAIN}")
            headers[file] = read_header(folder / file)
        if name not in headers[file]:
            raise UserError(f"{folder / file} does not hold {name}, though {INDEX_FILE} says so. {_AGAIN}")
        tensors[name] = headers[file][name]
    return tensors


def read_header(path: Path) -> dict[str, Tensor]:
    """Returns name -> Tensor of one file.

    Raises:
      UserError: the file is not safetensors, is cut off, or its header contradicts itself or the file's size.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise UserError(f"{path} is not a safetensors file, or is cut off within its header. {_AGAIN}")
        try:
            header: Any = json.loads(file.read(length))
        except ValueError:
            raise UserError(f"{path} is damaged: its header is not JSON. {_AGAIN}") from None
    if not isinstance(header, dict):
        raise UserError(f"{path} is damaged: its header is not a JSON object. {_AGAIN}")
    header.pop("__metadata__", None)
    begin = 8 + length
    tensors = sorted((_tensor(path, name, entry, begin) for name, entry in header.items()), key=lambda t: t.start)
    expected = begin
    for tensor in tensors:
        if tensor.stop > size:
            raise UserError(f"{path} is cut off: {tensor.name} needs byte {tensor.stop}, the file has {size}. {_AGAIN}")
        if tensor.start != expected:
            what = "overlaps the tensor before it" if tensor.start < expected else "leaves a hole before it"
            raise UserError(f"{path} is damaged: {tensor.name} at byte {tensor.start} {what}. {_AGAIN}")
        expected = tensor.stop
    if expected != size:
        raise UserError(f"{path} is damaged: {size - expected} bytes belong to no tensor. {_AGAIN}")
    return {tensor.name: tensor for tensor in tensors}


def read_rows(tensor: Tensor, first: int, last: int, columns: tuple[int, int] | None = None) -> np.ndarray:
    """Returns rows [first, last) of a floating tensor of one or two dimensions, in its stored dtype.

    Of two dimensions only the `columns` [left, right) are read where given; no other byte is.

    Raises:
      UserError: the file ends early (it changed since its header was read).
    """
    dtype = FLOAT_DTYPES[tensor.dtype]
    width = math.prod(tensor.shape[1:])
    left, right = columns or (0, width)
    rows = np.empty((last - first, right - left)[: len(tensor.shape)], dtype)
    view = rows.view(np.uint8).reshape(-1).data
    run = dtype.itemsize * (right - left if right - left < width else rows.size)  # bytes that lie together
    stride = dtype.itemsize * width
    offset = tensor.start + first * stride + left * dtype.itemsize
    descriptor = os.open(tensor.path, os.O_RDONLY)
    try:
        if run < len(view) and hasattr(os, "posix_fadvise"):  # else every run waits for a seek of its own
            os.posix_fadvise(descriptor, offset, (last - first) * stride, os.POSIX_FADV_WILLNEED)
        for start in range(0, len(view), max(1, run)):
            _read_run(descriptor, view[start : start + run], offset, tensor)
            offset += stride
    finally:
        os.close(descriptor)
    return rows


def write_file(path: Path, entries: Sequence[tuple[str, str, tuple[int, ...]]], blocks: Iterable[np.ndarray]) -> None:
    """Writes tensors one after the other and waits until they are on disk.

    Args:
      entries: (name, the format's name of the dtype, shape) of each.
      blocks: their bytes, row-major and in their order, in pieces of any size.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    offset = 0
    for name, dtype, shape in entries:
        stop = offset + FLOAT_DTYPES[dtype].itemsize * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in blocks:
            file.write(np.ascontiguousarray(block).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def row_blocks(
    shape: tuple[int, ...], itemsize: int, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, int]]:
    """Yields ranges [start, stop) that cut rows [first, last) of an array into blocks of about BLOCK_BYTES."""
    last = shape[0] if last is None else last
    step = max(1, BLOCK_BYTES // max(1, itemsize * math.prod(shape[1:])))
    for start in range(first, last, step):
        yield start, min(start + step, last)


def _read_run(descriptor: int, view: memoryview, offset: int, tensor: Tensor) -> None:
    while view:
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise UserError(f"{tensor.path} ended at byte {offset} while {tensor.name} was read. {_AGAIN}")
        view, offset = view[count:], offset + count


def _tensor(path: Path, name: str, entry: Any, begin: int) -> Tensor:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole or stop < start:
        raise UserError(f"{path} is damaged: the header entry of {name} makes no sense. {_AGAIN}")
    if dtype in FLOAT_DTYPES and stop - start != math.prod(shape) * FLOAT_DTYPES[dtype].itemsize:
        raise UserError(f"{path} is damaged: {name} {list(shape)} {dtype} does not fill {stop - start} bytes. {_AGAIN}")
    return Tensor(name, path, dtype, shape, begin + start, begin + stop)


def _read_index(path: Path) -> dict[str, str]:
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: no JSON object with a 'weight_map'. {_AGAIN}") from None


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in folder.glob(pattern))
    if not pickles:
        return f"No weights in {folder}: neither {SINGLE_FILE} nor {INDEX_FILE} is there."
    program = (
        "from transformers import LlamaForCausalLM as M; M.from_pretrained('OLD', dtype='auto').save_pretrained('NEW')"
    )
    return (
        f"{folder} holds pickled weights ({pickles[0]}), which can run code and are not read. "
        f'If you trust them, convert them where torch is installed: python -c "{program}"'
    )

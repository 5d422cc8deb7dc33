"""Parameters to a Hugging Face directory: streamed by blocks, renamed into place whole, verified by reading back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medtune_jax.convert import layout
from medtune_jax.convert.folder import new_folder, write_companions, write_json
from medtune_jax.convert.hf_config import config_to_hf
from medtune_jax.convert.hf_import import read_config
from medtune_jax.convert.origin import Origin
from medtune_jax.convert.safetensors_file import (
    FLOAT_DTYPES,
    INDEX_FILE,
    SINGLE_FILE,
    find_tensors,
    read_rows,
    row_blocks,
    write_file,
)
from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.errors import UserError
from medtune_jax.model.llama import LlamaConfig, Parameter, Params, get_param, num_params, parameter_rows

MAX_FILE_BYTES = 5_000_000_000


class _Stored(NamedTuple):
    """One tensor of the directory, and the slice of the tree that it is."""

    name: str
    row: Parameter
    layer: int | None
    shape: tuple[int, ...]


def export_params(
    params: Params,
    config: LlamaConfig,
    folder: str | Path,
    *,
    dtype: Any = "float32",
    tokenizer: Tokenizer | None = None,
    template: str | None = None,
    origin: Origin | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes model.safetensors (or several behind an index), config.json, generation_config.json, medtune.json, and
    origin.json with a model card where the origin is given.

    Everything is written beside `folder` and renamed when complete; the host holds one block of a tensor at a time.

    Args:
      params: the tree of model/llama.py, on this process's devices.
      folder: absent, or empty.
      dtype: of the stored tensors: "float32", "bfloat16" or "float16".
      tokenizer: its files are copied beside the weights, and both configs name its BOS and EOS: training ended every
        row with that EOS, whatever `config` names.
      template: name of the template that the model was tuned with; `generate` and `evaluate` then use it.
      origin: what the model was made from; where gated text is in it, the files are their owner's only.
      max_file_bytes: tensors are spread over files of at most this size (a larger tensor has a file of its own).

    Raises:
      UserError: the folder holds something, the disk is full or not writable, or this is one process of several.
    """
    folder = Path(folder)
    name = next((key for key, known in FLOAT_DTYPES.items() if known == jnp.dtype(dtype)), None)
    if name is None:
        raise UserError(f"Weights cannot be stored as {dtype}; float32, bfloat16 and float16 are possible.")
    if jax.process_count() > 1:
        raise UserError("Export runs in one process; call `medtune export` on one machine.")
    with new_folder(folder, private=bool(origin and origin.credentialed)) as spool:
        _write_weights(params, config, spool, name, max_file_bytes)
        described = _with_ids_of(tokenizer, config)
        hf = {**config_to_hf(described), "torch_dtype": str(jnp.dtype(dtype)), "dtype": str(jnp.dtype(dtype))}
        write_json(spool / "config.json", hf)
        ids = {"bos_token_id": described.bos_id, "eos_token_id": described.eos_id}
        write_json(spool / "generation_config.json", ids)
        about = {"parameters": f"{num_params(config):,} in {dtype}"}
        write_companions(spool, tokenizer=tokenizer, template=template, origin=origin, about=about)


def verify_export(
    params: Params, config: LlamaConfig, folder: str | Path, *, tokenizer: Tokenizer | None = None
) -> int:
    """Reads `folder` back and compares every tensor bit for bit with `params`, and config.json with `config`.

    tokenizer: the one that was exported, whose BOS and EOS config.json then names.

    Returns:
      The number of tensors compared.

    Raises:
      RuntimeError: something that was read is not what was written.
    """
    folder = Path(folder)
    if read_config(folder) != _with_ids_of(tokenizer, config):
        raise RuntimeError(f"{folder}/config.json does not describe the model that was exported.")
    found = find_tensors(folder)
    expected = _stored(config)
    if set(found) != {stored.name for stored in expected}:
        raise RuntimeError(f"{folder} does not hold the tensors that were exported.")
    for stored in expected:
        tensor = found[stored.name]
        dtype = FLOAT_DTYPES[tensor.dtype]
        for start, stop in row_blocks(stored.shape, dtype.itemsize, 0, stored.shape[0]):
            written = _block(params, config, stored, start, stop, dtype)
            if tensor.shape != stored.shape or written.tobytes() != read_rows(tensor, start, stop).tobytes():
                raise RuntimeError(f"{folder}: {stored.name} does not read back as it was exported.")
    return len(expected)


def _with_ids_of(tokenizer: Tokenizer | None, config: LlamaConfig) -> LlamaConfig:
    return config if tokenizer is None else replace(config, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)


def _stored(config: LlamaConfig) -> list[_Stored]:
    return [
        _Stored(name, row, layer if layout.is_stacked(row) else None, layout.tensor_shape(row, config))
        for row in parameter_rows(config)
        for layer, name in enumerate(layout.tensor_names(row, config))
    ]


def _write_weights(params: Params, config: LlamaConfig, folder: Path, dtype: str, max_bytes: int) -> None:
    itemsize = FLOAT_DTYPES[dtype].itemsize
    files: list[list[_Stored]] = [[]]
    filled = 0
    for stored in _stored(config):
        size = itemsize * math.prod(stored.shape)
        if files[-1] and filled + size > max_bytes:
            files.append([])
            filled = 0
        files[-1].append(stored)
        filled += size
    names = [SINGLE_FILE]
    if len(files) > 1:
        names = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
        total = sum(itemsize * math.prod(stored.shape) for stored in _stored(config))
        placed = {stored.name: name for name, tensors in zip(names, files, strict=True) for stored in tensors}
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": placed})
    for name, tensors in zip(names, files, strict=True):
        entries = [(stored.name, dtype, stored.shape) for stored in tensors]
        write_file(folder / name, entries, _blocks(params, config, tensors, FLOAT_DTYPES[dtype]))


def _blocks(params: Params, config: LlamaConfig, tensors: list[_Stored], dtype: np.dtype) -> Iterator[np.ndarray]:
    for stored in tensors:
        for start, stop in row_blocks(stored.shape, dtype.itemsize, 0, stored.shape[0]):
            yield _block(params, config, stored, start, stop, dtype)


def _block(params: Params, config: LlamaConfig, stored: _Stored, start: int, stop: int, dtype: np.dtype) -> np.ndarray:
    """Returns rows [start, stop) of one stored tensor, put together from the shards that hold them."""
    block = np.empty((stop - start, *stored.shape[1:]), dtype)
    for window, shard in _shards(get_param(params, stored.row), stored.row, config):
        above, below = max(window.rows[0], start), min(window.rows[1], stop)
        if above >= below:
            continue
        first_row = above - window.rows[0]
        part = np.asarray(
            _read(shard, stored.layer, first_row, rows=below - above, transpose=stored.row.transpose, dtype=dtype)
        )
        if window.columns is None:
            block[above - start : below - start] = part
        else:
            first, last = window.columns
            block[above - start : below - start, first:last] = part[:, : last - first]
    return block


def _shards(leaf: jax.Array, row: Parameter, config: LlamaConfig) -> Iterator[tuple[layout.Window, jax.Array]]:
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            yield layout.window(row, config, shard.index), shard.data


@partial(jax.jit, static_argnames=("rows", "transpose", "dtype"))
def _read(leaf: jax.Array, layer: int | None, first: int, *, rows: int, transpose: bool, dtype: np.dtype) -> jax.Array:
    tensor = leaf if layer is None else jax.lax.dynamic_index_in_dim(leaf, layer, 0, keepdims=False)
    part = jax.lax.dynamic_slice_in_dim(tensor, first, rows, axis=1 if transpose else 0)
    return (part.T if transpose else part).astype(dtype)

"""A Hugging Face Llama directory to parameters: byte ranges, layer by layer, straight into each device's shard.

Each leaf is allocated as zeros on its devices (so vocabulary padding is zero), then filled by blocks of rows: read from
the file, put on the devices that need them, cast (or quantised), transposed and written into the donated buffer there.
Host memory holds two blocks at a time, whatever the model's size; a process reads what its own devices hold.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from medtune_jax.convert import layout
from medtune_jax.convert.hf_config import config_from_hf
from medtune_jax.convert.safetensors_file import FLOAT_DTYPES, Tensor, find_tensors, read_rows, row_blocks
from medtune_jax.data.prompts import TEMPLATES
from medtune_jax.errors import UserError
from medtune_jax.model.llama import (
    LlamaConfig,
    Parameter,
    Params,
    abstract_params,
    build_params,
    get_param,
    parameter_rows,
)
from medtune_jax.model.quantize import QuantizedKernel
from medtune_jax.model.quantize import quantize as quantize_kernel

MEDTUNE_FILE = "medtune.json"  # what Hugging Face's files have no place for: the template that the model was tuned with
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_DERIVED = ".rotary_emb.inv_freq"  # old checkpoints store RoPE's frequencies; they follow from the config


def read_config(folder: str | Path, max_positions: int | None = None) -> LlamaConfig:
    """Returns the architecture that config.json describes.

    max_positions replaces the file's max_position_embeddings where given; raising it is warned of.

    Raises:
      UserError: the folder or the file is missing or damaged, or the architecture is not supported.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        what = "has no config.json" if Path(folder).is_dir() else "is not a folder"
        raise UserError(f"No model: {folder} {what}. `hf download OWNER/NAME` makes a Hugging Face directory.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    try:
        config = config_from_hf(found)
    except UserError as error:
        raise UserError(f"{path.parent}: {error}") from None
    if max_positions is None:
        return config
    if max_positions > config.max_positions:
        logging.getLogger(__name__).warning(
            "Positions raised from %d to %d: what %s does beyond rests on no training but yours.",
            config.max_positions,
            max_positions,
            folder,
        )
    return dataclasses.replace(config, max_positions=max_positions)


def read_template(folder: str | Path, *, force: bool = False) -> str | None:
    """Returns the name of the template that the model was tuned with, None where its folder names none.

    Raises:
      UserError: the file is damaged, or see `check_template`.
    """
    path = Path(folder) / MEDTUNE_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        name, sha256 = found["template"], found["template_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: no JSON object with 'template' and 'template_sha256'.") from None
    if name is None:
        return None
    if not isinstance(name, str):
        raise UserError(f"{path} is damaged: 'template' is {name!r}, not a name.")
    return check_template(name, sha256, path, force=force)


def check_template(name: str, sha256: object, where: Path, *, force: bool) -> str | None:
    """Returns `name`, where this version writes that template as the model `where` knows it.

    Else None with `force` (the caller asks with a template of the user's choice), or

    Raises:
      UserError: the template is unknown, or worded differently.
    """
    if name in TEMPLATES and TEMPLATES[name].sha256 == sha256:
        return name
    if force:
        return None
    what = "is worded differently in this version" if name in TEMPLATES else "is not known to this version"
    raise UserError(
        f"{where}: the model was tuned with template '{name}', which {what}, so its scores would mislead. Use the "
        "version of medtune_jax that tuned it, or ask anyway: --template=NAME --force_template."
    )


def warn_of_further_ends(folder: str | Path, eos_id: int) -> None:
    """Warns where generation_config.json names tokens that end a text beside `eos_id`: decoding ends with that alone.

    A file that is missing or damaged names none: nothing else is read from it.
    """
    try:
        named = json.loads((Path(folder) / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    others = [one for one in (named if isinstance(named, list) else [named]) if one not in (eos_id, None)]
    if others:
        logging.getLogger(__name__).warning(
            "%s: generation_config.json ends texts with %s too; here the tokenizer's end, %d, alone ends them. "
            "A stop string ends a text at another.",
            folder,
            ", ".join(map(str, others)),
            eos_id,
        )


def load_params(
    folder: str | Path,
    config: LlamaConfig,
    dtype: Any,
    mesh: jax.sharding.Mesh | None = None,
    *,
    quantize: str | None = None,
) -> Params:
    """Reads the weights into the tree of model/llama.py.

    Args:
      folder: model.safetensors, or several files behind model.safetensors.index.json; F32, F16 or BF16.
      config: the folder's architecture; max_positions, RoPE and token ids may differ from it.
      dtype: of every leaf, "float32" or "bfloat16".
      mesh: shards as `param_shardings(config, mesh)`; None = the default device.
      quantize: a kind of model/quantize.py, in which the projections' kernels are then stored, whatever `dtype`.

    Returns:
      The tree of `abstract_params`; rows of vocabulary padding are zero.

    Raises:
      UserError: naming the tensor that is missing, cut off, of another shape or dtype, or unexpected; or the parameter
        that does not divide over the mesh.
    """
    tensors = _match(Path(folder), find_tensors(Path(folder)), config)
    abstract = abstract_params(config, jnp.dtype(dtype), mesh, quantize=quantize)
    return build_params(config, lambda row: _load_leaf(row, tensors[row.path], config, get_param(abstract, row)))


def weights_sha256(folder: str | Path) -> str:
    """Returns the identity of the weights: a SHA-256 over every tensor's name, dtype, shape and bytes.

    It does not depend on how the tensors are split over files, nor on config.json. Every byte is read, in parallel
    over tensors: on a machine with 2 cores about 1 s per GB (in the page cache). Of several processes, each of which
    must call this, every one reads its share of the tensors.
    """
    tensors = sorted(find_tensors(Path(folder)).values(), key=lambda tensor: tensor.name)
    processes = jax.process_count()

    def digest(tensor: Tensor) -> bytes:
        own = hashlib.sha256(json.dumps([tensor.name, tensor.dtype, list(tensor.shape)]).encode())
        with tensor.path.open("rb") as file:
            for start in range(tensor.start, tensor.stop, 1 << 20):
                own.update(os.pread(file.fileno(), min(1 << 20, tensor.stop - start), start))
        return own.digest()

    digests = np.zeros((-(-len(tensors) // processes), hashlib.sha256().digest_size), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, part in enumerate(pool.map(digest, tensors[jax.process_index() :: processes])):
            digests[i] = np.frombuffer(part, np.uint8)
    everyones = process_allgather(digests).reshape(processes, *digests.shape)
    in_order = everyones.swapaxes(0, 1).reshape(-1, digests.shape[1])  # process p has tensors p, p + processes, ...
    return hashlib.sha256(in_order[: len(tensors)].tobytes()).hexdigest()


# ------------------------------------------------------------------------------------------- which tensor goes where


def _match(folder: Path, found: dict[str, Tensor], config: LlamaConfig) -> dict[str, tuple[Tensor, ...]]:
    """Returns leaf path -> its tensors in stacking order, after checking names, dtypes and shapes."""
    if config.tie_embeddings and _HEAD in found:
        found = dict(found)
        head = found.pop(_HEAD)
        if _EMBEDDING not in found:
            found[_EMBEDDING] = head
        elif not _same(head, found[_EMBEDDING]):
            raise UserError(
                f"{folder}: config.json ties the embeddings, but {_HEAD} and {_EMBEDDING} are stored and differ. "
                "Set tie_word_embeddings to false in config.json."
            )
    matched: dict[str, tuple[Tensor, ...]] = {}
    missing: list[str] = []
    for row in parameter_rows(config):
        names = layout.tensor_names(row, config)
        missing += [name for name in names if name not in found]
        matched[row.path] = tuple(found[name] for name in names if name in found)
    if missing:
        raise UserError(f"{folder}: the weights lack {_some(missing)}.{_hint(missing, found)}")
    known = {tensor.name for tensors in matched.values() for tensor in tensors}
    unexpected = [name for name in found if name not in known | {_EMBEDDING} and not name.endswith(_DERIVED)]
    if unexpected:
        raise UserError(f"{folder}: the weights hold {_some(unexpected)}, for which config.json has no place.")
    for row in parameter_rows(config):
        for tensor in matched[row.path]:
            _check(folder, row, tensor, config)
    return matched


def _check(folder: Path, row: Parameter, tensor: Tensor, config: LlamaConfig) -> None:
    shape = layout.tensor_shape(row, config)
    if tensor.shape != shape:
        fields = ", ".join(layout.FIELDS[dim] for dim in layout.tensor_dims(row))
        raise UserError(
            f"{folder}: {tensor.name} has shape {list(tensor.shape)}, config.json asks for {list(shape)} ({fields})."
        )
    if tensor.dtype not in FLOAT_DTYPES:
        raise UserError(f"{folder}: {tensor.name} is stored as {tensor.dtype}; {', '.join(FLOAT_DTYPES)} are read.")


def _same(a: Tensor, b: Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape) or a.dtype not in FLOAT_DTYPES:
        return False
    blocks = row_blocks(a.shape, FLOAT_DTYPES[a.dtype].itemsize, 0, a.shape[0])
    return all(
        np.array_equal(read_rows(a, *rows).view(np.uint8), read_rows(b, *rows).view(np.uint8)) for rows in blocks
    )


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest


def _hint(missing: Iterable[str], found: dict[str, Tensor]) -> str:
    if list(missing) == [_HEAD]:
        return " If the model ties its embeddings, set tie_word_embeddings to true in config.json."
    return f" It holds {_some(list(found))}." if found else " It holds no tensors."


# ------------------------------------------------------------------------------------------------- filling the leaves


@dataclasses.dataclass
class _Shard:
    """One distinct part of a leaf, and its copy on each device that holds it (None = the default device)."""

    window: layout.Window
    devices: list[Any]
    buffers: list[Any]  # arrays, or kernels quantised as they are filled


def _load_leaf(row: Parameter, tensors: Sequence[Tensor], config: LlamaConfig, struct: Any) -> Any:
    """Returns the leaf that `struct` describes: a ShapeDtypeStruct, or a QuantizedKernel of two."""
    sharding = jax.tree.leaves(struct)[0].sharding
    shards = _allocate(row, config, struct, sharding)
    held = layout.span([shard.window for shard in shards])
    for layer, tensor in enumerate(tensors):
        width = tensor.shape[1:] if held.columns is None else (held.columns[1] - held.columns[0],)
        for start, stop in row_blocks((0, *width), FLOAT_DTYPES[tensor.dtype].itemsize, *held.rows):
            block = read_rows(tensor, start, stop, held.columns)
            for shard in shards:  # only now: the device worked on the block before while this one was read
                jax.block_until_ready(shard.buffers)
                _fill(shard, row, block, (start, 0 if held.columns is None else held.columns[0]), layer)
    buffers = [buffer for shard in shards for buffer in shard.buffers]
    if sharding is None:
        return buffers[0]

    def assemble(struct: jax.ShapeDtypeStruct, *parts: jax.Array) -> jax.Array:
        return jax.make_array_from_single_device_arrays(struct.shape, sharding, list(parts))

    return jax.tree.map(assemble, struct, *buffers)


def _allocate(row: Parameter, config: LlamaConfig, struct: Any, sharding: Any) -> list[_Shard]:
    shape = row.shape(config)
    whole: tuple[slice, ...] = (slice(None),) * len(shape)
    where = {None: whole} if sharding is None else sharding.addressable_devices_indices_map(shape)

    def zeros(struct: jax.ShapeDtypeStruct, device: Any) -> jax.Array:
        extent = struct.shape if sharding is None else sharding.shard_shape(struct.shape)
        return jnp.zeros(extent, struct.dtype, device=device)

    shards: dict[layout.Window, _Shard] = {}
    for device, index in where.items():
        key = layout.window(row, config, index)
        shard = shards.setdefault(key, _Shard(key, [], []))
        shard.devices.append(device)
        shard.buffers.append(jax.tree.map(partial(zeros, device=device), struct))
    return list(shards.values())


def _fill(shard: _Shard, row: Parameter, block: np.ndarray, corner: tuple[int, int], layer: int) -> None:
    """Writes `block`, what is stored from row and column `corner` on, into the shard, where the two meet.

    A quantised kernel's blocks lie along the stored columns, of which a shard's are whole multiples: each stored row
    quantises by itself, and position (0, output) is the same in kernel, codes and scales.
    """
    (first, last), columns = shard.window
    start, left = corner
    above, below = max(first, start), min(last, start + len(block))
    if above >= below:
        return
    part = block[above - start : below - start]
    part = part if columns is None else part[:, columns[0] - left : columns[1] - left]
    at = [above - first] if columns is None else [above - first, 0]
    at = at[::-1] if row.transpose else at
    at = [layer, *at] if layout.is_stacked(row) else at
    for i, device in enumerate(shard.devices):
        shard.buffers[i] = _write(shard.buffers[i], jax.device_put(part, device), at, transpose=row.transpose)


@partial(jax.jit, static_argnames="transpose", donate_argnames="buffer")
def _write(buffer: Any, part: jax.Array, at: list[jax.Array], *, transpose: bool) -> Any:
    part = part.T if transpose else part

    def write(buffer: jax.Array, part: jax.Array) -> jax.Array:
        part = part.reshape((1,) * (buffer.ndim - part.ndim) + part.shape)
        return jax.lax.dynamic_update_slice(buffer, part.astype(buffer.dtype), at)

    written = quantize_kernel(part, buffer.kind) if isinstance(buffer, QuantizedKernel) else part
    return jax.tree.map(write, buffer, written)

"""The parameter table read as Hugging Face tensors: which tensor is which slice of which leaf, and in what shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from medtune_jax.model.llama import LlamaConfig, Parameter

Range = tuple[int, int]

FIELDS = {  # dimension letter -> what config.json calls its size
    "V": "vocab_size",
    "D": "hidden_size",
    "F": "intermediate_size",
    "HE": "num_attention_heads x head_dim",
    "KE": "num_key_value_heads x head_dim",
}


class Window(NamedTuple):
    """The part of a stored tensor that one shard of its leaf holds; columns is None for a vector."""

    rows: Range
    columns: Range | None


def is_stacked(row: Parameter) -> bool:
    """Whether the leaf holds one tensor per layer."""
    return row.dims[0] == "L"


def tensor_names(row: Parameter, config: LlamaConfig) -> tuple[str, ...]:
    """Returns the Hugging Face names of the leaf's tensors, in the order in which the leaf stacks them."""
    return tuple(row.hf.format(l=layer) for layer in range(config.num_layers)) if is_stacked(row) else (row.hf,)


def tensor_dims(row: Parameter) -> tuple[str, ...]:
    """Returns the dimension letters of one tensor as it is stored."""
    dims = row.dims[1:] if is_stacked(row) else row.dims
    return dims[::-1] if row.transpose else dims


def tensor_shape(row: Parameter, config: LlamaConfig) -> tuple[int, ...]:
    """Returns the shape of one tensor as it is stored: no vocabulary padding."""
    sizes = {**config.sizes, "V": config.vocab_size}
    return tuple(sizes[dim] for dim in tensor_dims(row))


def window(row: Parameter, config: LlamaConfig, index: tuple[slice, ...]) -> Window:
    """Returns which part of each stored tensor lies in the shard `index` of the leaf; padding is cut away."""
    ranges = [part.indices(size)[:2] for part, size in zip(index, row.shape(config), strict=True)]
    ranges = ranges[1:] if is_stacked(row) else ranges
    ranges = ranges[::-1] if row.transpose else ranges
    limits = tensor_shape(row, config)
    cut = [(min(start, limit), min(stop, limit)) for (start, stop), limit in zip(ranges, limits, strict=True)]
    return Window(cut[0], cut[1] if len(cut) == 2 else None)


def span(windows: Sequence[Window]) -> Window:
    """Returns the smallest window that holds all of `windows`."""

    def around(ranges: Sequence[Range]) -> Range:
        return min(start for start, _ in ranges), max(stop for _, stop in ranges)

    columns = [window.columns for window in windows if window.columns is not None]
    return Window(around([window.rows for window in windows]), around(columns) if columns else None)

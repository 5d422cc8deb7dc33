"""A kernel is run once on the device at hand, beside plain operations, before a run trusts it.

That matters most where it has never run before: cuDNN's packed layout is a private function of jax, and what has been
tested here of the other kernels was interpreted. Three short documents and padding, with the model's own heads, must
give plain operations' output and gradients, and a document must not see what its neighbours hold.

Dimensions: S positions, H query heads, K key-value heads, E width of a head; one row.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medtune_jax.model.attention import attention

TOLERANCE = 2e-2  # relative L2 of 16 bit beside float32; measured 3e-3 to 6e-3 for right kernels, interpreted
_SHORT = 256  # positions are enough to show a wrong mask, and compile soon
_MIDDLE = 2  # the document that has neighbours before and after
_Arrays = tuple[jax.Array, ...]


def why_wrong(
    name: str, device: jax.Device, *, heads: int, kv_heads: int, head_dim: int, sequence: int, dtype: Any
) -> str | None:
    """Returns what is wrong with kernel `name` on `device`, an exception included; None where it is right.

    sequence: the run's own; a shorter one is computed, as far from a multiple of 128. To be called outside of a mesh.
    """
    short = min(max(sequence, 16), _SHORT + sequence % 128)
    lengths = (short * 3 // 8, short // 4, short // 8)
    segments_S = np.zeros(short, np.int32)
    segments_S[: sum(lengths)] = np.repeat([1, _MIDDLE, 3], lengths)
    segments = jnp.asarray(segments_S)[None]
    try:
        with jax.default_device(device):
            inputs = _inputs(segments, (heads, kv_heads, kv_heads, heads), head_dim, dtype)
            run = jax.jit(partial(_output_and_gradients, name))
            found = run(segments, *inputs)
            neighbours = (segments != _MIDDLE)[:, :, None, None]
            other = run(segments, *(jnp.where(neighbours, 1 - x, x) for x in inputs[:3]), inputs[3])
            with jax.default_matmul_precision("highest"):
                plain = jax.jit(partial(_output_and_gradients, "xla"))
                expected = plain(segments, *(x.astype(jnp.float32) for x in inputs))
        return _difference(segments_S, *(jax.device_get(arrays) for arrays in (found, other, expected)))
    except Exception as error:  # whatever stops it here would stop the run
        return f"it fails on {device.device_kind}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _inputs(segments: jax.Array, heads: tuple[int, ...], head_dim: int, dtype: Any) -> _Arrays:
    """Returns random q, k, v and the cotangent of the output, 0 on padding as a loss mask makes it."""
    keys = jax.random.split(jax.random.key(0), len(heads))
    *qkv, cotangent = (
        jax.random.normal(key, (*segments.shape, count, head_dim), dtype)
        for key, count in zip(keys, heads, strict=True)
    )
    return *qkv, jnp.where((segments > 0)[:, :, None, None], cotangent, 0)


def _output_and_gradients(
    name: str, segments: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, cotangent: jax.Array
) -> _Arrays:
    output, pull_back = jax.vjp(lambda q, k, v: attention(q, k, v, segments, implementation=name), q, k, v)
    return output, *pull_back(cotangent)


def _difference(segments_S: np.ndarray, found: Any, other: Any, expected: Any) -> str | None:
    """Returns what of a kernel's output and gradients is wrong; `other` is with the middle document's neighbours
    changed, `expected` what plain operations give."""
    real_S = segments_S > 0
    for what, ours, theirs in zip(("output", "dq", "dk", "dv"), found, expected, strict=True):
        ours = np.asarray(ours, np.float32)
        if not np.isfinite(ours).all():
            return f"its {what} is not finite"
        theirs_real = theirs[:, real_S]
        distance = np.linalg.norm(ours[:, real_S] - theirs_real) / np.linalg.norm(theirs_real)
        if not distance < TOLERANCE:
            return f"its {what} is {distance:.1%} away from that of plain operations"
    middle_S = segments_S == _MIDDLE
    if not np.array_equal(found[0][:, middle_S], other[0][:, middle_S]):
        return "a document's output changes with what its neighbours hold"
    return None

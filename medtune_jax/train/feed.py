"""Batches on their way to the devices: laid out over the mesh, made a step or two early on a thread of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from medtune_jax.data.loader import Batch
from medtune_jax.sharding import batch_sharding

T = TypeVar("T")
Index = tuple[slice, ...] | None


def put(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Lays a host batch out over the mesh; each process gives the rows of its own devices."""
    return put_rows(lambda rows: {name: x[rows] for name, x in batch.items()}, len(batch["tokens"]), mesh)


def put_rows(make: Callable[[slice], Batch], size: int, mesh: Mesh) -> dict[str, jax.Array]:
    """Lays a batch of `size` rows out over the mesh; `make` is asked for the rows of this process's devices only."""
    place = batch_sharding(mesh)
    spans = [_span(index, size) for index in place.addressable_devices_indices_map((size,)).values()]
    first, end = min(start for start, _ in spans), max(stop for _, stop in spans)

    def laid_out(own: np.ndarray) -> jax.Array:
        def of_device(index: Index) -> np.ndarray:
            start, stop = _span(index, size)
            return own[start - first : stop - first]

        return jax.make_array_from_callback((size, *own.shape[1:]), place, of_device)

    return {name: laid_out(own) for name, own in make(slice(first, end)).items()}


def _span(index: Index, size: int) -> tuple[int, int]:
    """Returns the first row that an index of a device's part takes, and the one after its last."""
    rows = slice(None) if index is None else index[0]
    return rows.indices(size)[:2]


@contextmanager
def prefetched(make: Callable[[int], T], steps: Iterable[int], ahead: int = 2) -> Iterator[Iterator[T]]:
    """Gives an iterator over make(step), made in order on one thread, at most `ahead` before they are asked for.

    What `make` raises is raised where its value is asked for. However the block is left, no further one is made and the
    thread has ended afterwards; one that is being made is waited for.
    """
    left = iter(steps)
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        made: deque[Future[T]] = deque(thread.submit(make, step) for step in islice(left, ahead))

        def taken() -> Iterator[T]:
            while made:
                value = made.popleft().result()
                made.extend(thread.submit(make, step) for step in islice(left, 1))
                yield value

        try:
            yield taken()
        finally:
            thread.shutdown(cancel_futures=True)

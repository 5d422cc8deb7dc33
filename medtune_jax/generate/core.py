"""What the drivers of decoding share: a model placed for decoding, and the count of the work that was done with it.

A driver is a module with one function that answers rows in one way: free.py (token by token), templated.py (by
template), scored.py (log-likelihoods). `Engine` (engine.py) is their front.

Rows are answered in groups, which `groups` makes of all rows alone, whichever are skipped because they are answered
already: a group in which any row is wanted is computed whole. So a run that was stopped continues in the batches of an
undisturbed one and ends with its bytes, also where rounding depends on a row's neighbours.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.errors import UserError
from medtune_jax.generate import decode
from medtune_jax.generate.budget import (
    ONE_TOKEN,
    Budget,
    Step,
    default_slots,
    find_budget,
    find_demand,
    position_bytes,
    whole_batch,
)
from medtune_jax.generate.prefixes import Prefixes, shared_beginnings
from medtune_jax.generate.results import PROMPT_TOO_LONG, Results
from medtune_jax.generate.slots import Slots, Waiting, round_up, slot_length
from medtune_jax.model.llama import LlamaConfig
from medtune_jax.sharding import BATCH_AXES

_LEAST_GROUP = 256  # rows
_BATCHES = 16  # a group is so many times the batch: what the draining of its slots costs is a small part


@dataclass
class Work:
    """What was computed, counted; sums over everything that an engine did.

    Attributes:
      passes: forward passes of a batch behind its prompts: sequential steps, the unit of decoding time.
      slot_passes: passes x slots; busy_slot_passes: of these, the slots in which a row made use of the pass.
      prompt_tokens: of prompts, computed; shared_tokens: of prompts, taken from a prefix that was computed before.
      drafted, accepted: of speculative decoding: tokens proposed, and those of them that greedy would have written.
    """

    passes: int = 0
    slot_passes: int = 0
    busy_slot_passes: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def slot_use(self) -> float:
        """The share of slots that did useful work, 0..1."""
        return self.busy_slot_passes / max(1, self.slot_passes)


@dataclass(frozen=True, eq=False)
class Core:
    """A model placed for decoding.

    Attributes:
      weights: cast, and placed on `mesh`; None = one device.
      dtype: of weights and activations.
      work: counts what is done.
      cache_dtype: "int8", or None = `dtype`; cache_bytes: what a cache may take of each device; None = what is free.
      kept_budget: bytes that were free when a run began which is now continued: caches are made as large as then.
    """

    weights: decode.Weights
    config: LlamaConfig
    tokenizer: Tokenizer
    mesh: Mesh | None
    dtype: Any
    work: Work = field(default_factory=Work)
    cache_dtype: str | None = None
    cache_bytes: int | None = None
    kept_budget: float | None = None

    @property
    def stored(self) -> Any:
        """The dtype of caches."""
        return jnp.dtype(self.cache_dtype or self.dtype)

    @property
    def ways(self) -> int:
        """Devices among which slots are shared out."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    @cached_property
    def budget(self) -> Budget:
        """What caches may take of each device, found when it is first asked for; by all processes together."""
        jax.block_until_ready(self.weights)
        return find_budget(self.mesh, self.cache_bytes)

    @property
    def first_budget(self) -> Budget:
        """The budget by which caches are sized: of the run's first start where it is known."""
        return self.budget if self.kept_budget is None else replace(self.budget, size=self.kept_budget)

    def batch_size(
        self, rows: Sequence[Waiting], asked: int | None, *, step: Step = ONE_TOKEN, most: int | None = None
    ) -> int:
        """Returns how many slots these rows are given at most.

        Args:
          asked: by the user; None = as many as fit, up to a default of the device.
          step: the widest pass that these rows need.
          most: of what use more would not be.

        Raises:
          UserError: what is asked is below 1; it, or one slot of the longest row, or what the run had at its first
            start, does not fit into the budget.
        """
        if asked is not None and asked < 1:
            raise UserError(f"batch_size {asked} is below 1.")
        if not rows:
            return 1
        demand = find_demand(self.config, self.dtype, self.stored, self.mesh, self.budget, slot_length(rows), step)
        if asked is None:
            usual = default_slots(self.ways)
            found = demand.default(self.first_budget, usual if most is None else min(usual, most))
        else:
            found = asked if most is None else min(asked, most)
        slots, _ = self.batch(len(rows), found)
        if demand.size(slots) > self.budget.slots:
            raise demand.refusal(self.budget, slots)
        return found

    def prefixes(self, rows: Sequence[Waiting]) -> Prefixes:
        """Returns what these rows' prompts share at their beginnings, with room for as much of it as the budget has."""
        found = shared_beginnings([row.filled for row in rows])
        if not found:
            return Prefixes((), 0)
        position = position_bytes(self.config, self.stored, self.mesh)
        one = position * round_up(max(len(begin.tokens) for begin in found), 64)
        wanted = -(-len(found) // self.ways)
        fitting = int(self.first_budget.prefixes // one)
        each = min(1 << (wanted - 1).bit_length(), 1 << fitting.bit_length() >> 1)  # powers of two
        if each * one > self.budget.prefixes:
            raise UserError(
                f"The run that is continued kept {each:,} shared beginnings of {one:,} bytes on each device, and there "
                f"are {self.budget.prefixes:,.0f} bytes for them now: free memory, or start anew in another folder."
            )
        return Prefixes(found, each * self.ways)

    def slots(
        self, rows: Sequence[Any], batch_size: int, *, of: int | None = None, prefixes: Prefixes | None = None
    ) -> Slots[Any]:
        """Returns a batch through which these rows will pass, in their order.

        Args:
          batch_size: as `batch_size` returned it for all rows of the call.
          of: rows in all, where this is one batch of several that should have one size.
          prefixes: the shared beginnings of all rows of a call; None = of these rows.
        """
        batch, chunk = self.batch(of or len(rows), batch_size)
        shared = self.prefixes(rows) if prefixes is None else prefixes
        return Slots(
            self.weights, self.config, self.stored, iter(rows), batch, chunk=chunk, prefixes=shared, work=self.work
        )

    def batch(self, rows: int, batch_size: int) -> tuple[int, int]:
        """Returns (slots, how many of them are prefilled together)."""
        return whole_batch(min(batch_size, 1 << max(0, rows - 1).bit_length()), self.ways)

    def continuation(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """Returns what `tokens` add to the prompt's text (alone, they would lose a leading space)."""
        before = self.tokenizer.decode(prompt)
        whole = self.tokenizer.decode([*prompt, *tokens])
        return whole[len(before) :] if whole.startswith(before) else self.tokenizer.decode(tokens)

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Within it, jitted functions run over the mesh and in the precision that `dtype` means."""
        with contextlib.ExitStack() as stack:
            if self.mesh is not None:
                stack.enter_context(jax.set_mesh(self.mesh))
            if self.dtype == jnp.float32:
                stack.enter_context(jax.default_matmul_precision("highest"))
            yield


class Indexed(Protocol):
    """A row that knows its index among all that were asked, and about how much it needs."""

    @property
    def index(self) -> int: ...
    @property
    def need(self) -> int: ...


Kind = TypeVar("Kind", bound=Indexed)


def groups(rows: Sequence[Kind], batch_size: int, skip: Collection[int]) -> Iterator[list[Kind]]:
    """Yields the rows in groups, longest first; groups of which every row is skipped are left out.

    Args:
      rows: all that fit, skipped ones included.
      skip: indices of rows that need no answer.
    """
    ordered = sorted(rows, key=lambda row: -row.need)
    size = max(_LEAST_GROUP, _BATCHES * batch_size)
    for start in range(0, len(ordered), size):
        group = ordered[start : start + size]
        if not all(row.index in skip for row in group):
            yield group


def fitting(core: Core, rows: Iterable[Kind], results: Results) -> list[Kind]:
    """Returns the rows that the model has positions for, longest first; the others are answered here."""
    ordered = sorted(rows, key=lambda row: -row.need)
    found = [row for row in ordered if row.need <= core.config.max_positions]
    for row in ordered[: len(ordered) - len(found)]:
        results.add(row.index, PROMPT_TOO_LONG)
    return found

"""Draws, deduplicates, balances and orders rows.

Every choice is an integer hash of (seed, purpose, source, split, row): it depends on no other row and on no library's
random numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from medtune_jax.data_prep.mixtures.mixture import Ingredient
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import find_source
from medtune_jax.tasks.rows import Row, registered_name

DUPLICATE = "duplicate"
OVER_CAP = "over the cap"
OTHER_CATEGORY = "other category"
NOT_SAMPLED = "not sampled"
NOT_BALANCED = "more than the other tasks have"


@dataclass
class Batch:
    """The rows of one ingredient, in the order of their file, and why others are no longer among them.

    Attributes:
      numbers: of each row, its number among the rows of its source in the split.
      found: how many rows there were.
      missing: why there are none, "" where the ingredient was read.
    """

    ingredient: Ingredient
    rows: list[Row]
    missing: str = ""
    numbers: list[int] = field(init=False)
    found: int = field(init=False)
    dropped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        counts: Counter[str] = Counter()
        self.numbers = []
        names = self._names()
        for row in self.rows:
            self.numbers.append(counts[names[row.source]])
            counts[names[row.source]] += 1
        self.found = len(self.rows)

    def _names(self) -> dict[str, str]:
        """Returns the registered name of each source, in whichever of its names it stands in the rows."""
        return {name: registered_name(name) for name in dict.fromkeys(row.source for row in self.rows)}

    def keep(self, kept: Sequence[int], reason: str) -> None:
        """Keeps the rows at these positions, which are in order, and counts the others under `reason`."""
        if len(kept) < len(self.rows):
            self.dropped[reason] += len(self.rows) - len(kept)
            self.rows = [self.rows[position] for position in kept]
            self.numbers = [self.numbers[position] for position in kept]

    def ranks(self, seed: int, purpose: str) -> list[int]:
        """Returns of each row the 64-bit number that puts it into the seeded order of this purpose.

        Each purpose has its own order: else the rows that a cap leaves would come first in a shuffled split. Where the
        rows lie plays no part: the same rows are drawn whatever their file is called.
        """
        split = self.ingredient.split
        names = self._names()
        return [
            _hash64(f"{seed}/{purpose}/{names[row.source]}/{split}/{number}")
            for row, number in zip(self.rows, self.numbers, strict=True)
        ]


def _hash64(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def keep_categories(batch: Batch) -> None:
    """Keeps the rows of the ingredient's categories; a row's meta `category` comes before its source's."""
    wanted = batch.ingredient.categories
    if wanted:
        kept = [position for position, row in enumerate(batch.rows) if category_of(row) in wanted]
        batch.keep(kept, OTHER_CATEGORY)


def category_of(row: Row) -> str:
    """Returns QA, IE, GEN or other: the row's own category, else its source's, `other` for an unknown source.

    Raises:
      UserError: the row's meta is no JSON object.
    """
    try:
        meta = json.loads(row.meta or "{}")
    except json.JSONDecodeError:
        meta = None
    if not isinstance(meta, dict):
        raise UserError(f"Row {row.id}: meta must be a JSON object to be filtered by category.")
    source = find_source(row.source)
    return str(meta.get("category") or (source.category if source else "other"))


def drop_duplicates(batch: Batch, seen: set[bytes]) -> None:
    """Keeps the first of the rows that agree in (source, input, output).

    Args:
      seen: hashes of the rows that came before, added to; 16 bytes each, so that two texts never share one by chance.
    """
    kept = []
    for position, row in enumerate(batch.rows):
        key = _key(row)
        if key not in seen:
            seen.add(key)
            kept.append(position)
    batch.keep(kept, DUPLICATE)


def _key(row: Row) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for text in (row.source, row.input, row.output):
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.digest()


def draw(batch: Batch, count: int, seed: int, reason: str) -> None:
    """Keeps the first `count` rows of the batch's seeded order, in the order of their file."""
    if count < len(batch.rows):
        ranks = batch.ranks(seed, "draw")
        batch.keep(sorted(sorted(range(len(ranks)), key=ranks.__getitem__)[:count]), reason)


def cap(batch: Batch, seed: int) -> None:
    """Draws what the ingredient's cap or fraction (rounded down) leaves."""
    ingredient = batch.ingredient
    if ingredient.fraction is not None:
        exact = Fraction(str(ingredient.fraction)) * len(batch.rows)  # in floats 0.29 * 100 is 28.999...
        draw(batch, int(exact), seed, OVER_CAP)
    if ingredient.cap is not None:
        draw(batch, ingredient.cap, seed, OVER_CAP)


def sample(batches: Sequence[Batch], total: int, temperature: float | None, seed: int) -> None:
    """Draws `total` rows in all, each ingredient's share by its weight, or by rows ** (1 / temperature)."""
    sizes = [len(batch.rows) for batch in batches]
    if temperature is None:
        weights = [batch.ingredient.weight or 0.0 for batch in batches]
    else:
        weights = [size ** (1 / temperature) for size in sizes]
    for batch, count in zip(batches, shares(sizes, weights, total), strict=True):
        draw(batch, count, seed, NOT_SAMPLED)


def shares(sizes: Sequence[int], weights: Sequence[float], total: int) -> list[int]:
    """Returns how many rows each gives: proportional to `weights`, never more than it has, `total` in all if there are
    so many.

    No row is repeated: what one lacks of its share is divided among the others by their weights. Fractions are rounded
    by largest remainder, the earlier first on ties. Computed in exact fractions: no weight is too large or small.
    """
    parts = [Fraction(weight) for weight in weights]
    given = [0] * len(sizes)
    open_ = [index for index, size in enumerate(sizes) if size]
    left = min(total, sum(sizes))
    while open_:
        whole = sum(parts[index] for index in open_)
        full = [index for index in open_ if left * parts[index] / whole >= sizes[index]]
        if not full:
            break
        for index in full:
            given[index] = sizes[index]
        left -= sum(sizes[index] for index in full)
        open_ = [index for index in open_ if index not in full]
    if open_:
        exact = {index: left * parts[index] / whole for index in open_}
        given = [int(exact[index]) if index in exact else count for index, count in enumerate(given)]
        missing = left - sum(given[index] for index in open_)
        for index in sorted(open_, key=lambda index: (given[index] - exact[index], index))[:missing]:
            given[index] += 1
    return given


def balance_tasks(batches: Sequence[Batch], seed: int) -> None:
    """Leaves as many rows of each kind of task as the rarest kind has.

    The rows of a kind are pooled over all ingredients and the first of their seeded order kept, so that sources keep
    their proportions within their kind (in expectation). Rows of unknown sources are a kind of their own.
    """
    pooled: dict[str, list[tuple[int, int, int]]] = {}
    for index, batch in enumerate(batches):
        ranks = batch.ranks(seed, "balance")
        for position, row in enumerate(batch.rows):
            source = find_source(row.source)
            pooled.setdefault(source.task.kind if source else "", []).append((ranks[position], index, position))
    if not pooled:
        return
    least = min(map(len, pooled.values()))
    kept: list[list[int]] = [[] for _ in batches]
    for drawn in pooled.values():
        for _, index, position in sorted(drawn)[:least]:
            kept[index].append(position)
    for batch, positions in zip(batches, kept, strict=True):
        batch.keep(sorted(positions), NOT_BALANCED)


def ordered(batches: Sequence[Batch], shuffle: bool, seed: int) -> list[Row]:
    """Returns all rows: in the order of their ingredients, or in one seeded order."""
    rows = [row for batch in batches for row in batch.rows]
    if not shuffle:
        return rows
    ranks = [rank for batch in batches for rank in batch.ranks(seed, "shuffle")]
    return [rows[position] for position in sorted(range(len(rows)), key=ranks.__getitem__)]

"""Rows that are not trained on: a split of the data, or training rows held out by seed."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from medtune_jax.config import REPORTED, Config
from medtune_jax.data.packing import order
from medtune_jax.errors import UserError
from medtune_jax.tasks.rows import MissingSplit, Row, read_rows, rows_of

HOLDOUT = "holdout"  # what is logged as the split of rows held out of training
_SHORT = 24  # characters of an input that says nothing by itself; our choice
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """Rows that are not trained on.

    Attributes:
      split: name of their split, or HOLDOUT.
      rows: empty where there are none.
    """

    split: str
    rows: tuple[Row, ...]


def hold_out(config: Config, rows: Sequence[Row]) -> tuple[list[int], HeldOut]:
    """Returns the indices of the rows to train on, and what is held out: evaluation.holdout of `rows`, else a split.

    Where checkpoint.best is set, rows that also stand in a reported split (same input and output) are left out of what
    is held out: nothing is chosen by them.

    Raises:
      UserError: no rows would be left to train on, or none to choose by; a split is damaged.
    """
    if config.evaluation.holdout:
        held = _draw(rows, config.evaluation.holdout, config.train.seed)
        found = HeldOut(HOLDOUT, tuple(rows[i] for i in held))
        kept = sorted(set(range(len(rows))) - set(held))
    else:
        found = HeldOut(config.evaluation.split, tuple(_read_split(config)))
        kept = list(range(len(rows)))
    return kept, _without_reported(config, found) if config.checkpoint.best else found


def _draw(rows: Sequence[Row], wanted: float, seed: int) -> list[int]:
    """Returns the indices of so many rows, or so large a share; fewer where rows that stay together do not fit."""
    count = math.ceil(wanted * len(rows)) if wanted < 1 else int(wanted)
    sets: dict[int, list[int]] = {}
    for index, one in enumerate(_belonging(rows)):
        sets.setdefault(one, []).append(index)
    together = list(sets.values())
    held: list[int] = []
    for index in order(len(together), seed, epoch=-1):  # no epoch of training has this order
        if len(held) + len(together[index]) <= count:
            held += together[index]
    if not held:
        held = min(together, key=len)
    if len(held) == len(rows):
        raise UserError(
            f"evaluation.holdout={wanted:g} leaves none of {len(rows):,} training rows to train on; rows of one "
            f"`group`, and rows with the same text, stay together ({len(together):,} such sets). Lower it."
        )
    return sorted(held)


def _belonging(rows: Sequence[Row]) -> list[int]:
    """Returns for each row the number of its set: rows that share a `group` (document, patient) or a text are one set.

    A group's name counts whatever the source: two corpora may annotate one document. The text is the input; with the
    instruction where it is short, as "<noinput>" and "Yes" are, which many rows share that have nothing in common.
    """
    above = list(range(len(rows)))

    def top(index: int) -> int:
        while above[index] != index:
            above[index] = above[above[index]]
            index = above[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, row in enumerate(rows):
        text = row.input if len(row.input) >= _SHORT else f"{row.instruction}\n{row.input}"
        for name in (("group", row.group), ("text", text)):
            if name[1]:
                above[top(index)] = top(first.setdefault(name, index))
    return [top(index) for index in range(len(rows))]


def _read_split(config: Config) -> list[Row]:
    """Returns the rows of evaluation.split; none, with a warning, where the data has no such split."""
    split, path, sources = config.evaluation.split, config.data.path, config.data.sources
    if not (config.evaluation.every_steps or config.evaluation.samples_every_steps):
        return []
    told = "No evaluation during training:"
    mend = "--config.evaluation.holdout holds training rows out instead."
    if Path(path).is_file():
        _log.warning("%s %s is one file, without a split '%s'. %s", told, path, split, mend)
        return []
    try:
        rows = rows_of(read_rows(path, split), sources)
    except MissingSplit as error:
        _log.warning("%s %s %s", told, error, mend)
        return []
    if not rows:
        _log.warning("%s no %s rows of %s. %s", told, split, ", ".join(sources), mend)
    return rows


def _without_reported(config: Config, found: HeldOut) -> HeldOut:
    reported: set[tuple[str, str]] = set()
    if not Path(config.data.path).is_file():
        for split in REPORTED:
            with suppress(MissingSplit):
                reported |= {(row.input, row.output) for row in read_rows(config.data.path, split)}
    rows = tuple(row for row in found.rows if (row.input, row.output) not in reported)
    if len(rows) < len(found.rows):
        _log.warning(
            "%s: %d of %d rows also stand in a split that is reported (%s): they are left out, since checkpoint.best "
            "chooses by the others.",
            found.split,
            len(found.rows) - len(rows),
            len(found.rows),
            ", ".join(REPORTED),
        )
    if not rows:
        raise UserError(
            f"checkpoint.best={config.checkpoint.best} has no rows to choose by: "
            + (
                f"every row of '{found.split}' also stands in a split that is reported. "
                if found.rows
                else f"there are no rows of '{found.split}'. "
            )
            + "Give --config.evaluation.holdout, a number of training rows to hold out, or another evaluation.split."
        )
    return replace(found, rows=rows)

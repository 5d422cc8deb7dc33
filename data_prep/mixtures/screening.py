"""Compares the training rows of a `prepare` with every test set at hand and with its validation rows.

What training shares with a test set is dropped on request; what it shares with validation rows only is reported.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from medtune_jax.data_prep.corpora import Corpora, is_test
from medtune_jax.data_prep.mixtures.contamination import TEST, VALIDATION, HeldOut, N, overlap
from medtune_jax.data_prep.mixtures.mixing import Batch
from medtune_jax.errors import UserError

IN_A_TEST_SET = "shares text with a test set"
logger = logging.getLogger(__name__)


def screen(mode: str, batches: Sequence[Batch], corpora: Corpora, notes: dict[str, Any]) -> dict[str, Any]:
    """Returns what the manifest says of training text in held-out rows; row ids only, no text.

    Compared with are the test splits of all sources found, whether they are in the result or not, and the rows that go
    into the result's test and validation splits. Validation rows that are of a test split count as that test
    set. A source that may not be read, or cannot, is named in `not_compared`.

    Args:
      mode: report, drop (the training batches lose the rows that share text with a test set) or off.
      notes: its `warnings` are added to.
    """
    train = [batch for batch in batches if batch.ingredient.into == "train"]
    rows = [row for batch in train for row in batch.rows]
    if mode == "off" or not rows:
        return {"mode": mode, "train_rows": len(rows)}
    logger.info("comparing %d training rows with the held-out sets", len(rows))
    not_compared: list[dict[str, str]] = []
    found = overlap(rows, _held_out(batches, corpora, not_compared, notes))
    dropped = 0
    if mode == "drop":
        start = 0
        for batch in train:
            hit = found.hit[start : start + len(batch.rows)]
            start += len(batch.rows)
            dropped += int(hit.sum())
            batch.keep([at for at, shares in enumerate(hit) if not shares], IN_A_TEST_SET)
    return {
        "mode": mode,
        "n": N,
        "train_rows": len(rows),
        "shared_rows": int(found.hit.sum()),
        "validation_shared_rows": int(found.validation_hit.sum()),
        "dropped_rows": dropped,
        "pairs": found.pairs,
        "test_sets": found.test_sets,
        "not_compared": not_compared,
    }


def _held_out(
    batches: Sequence[Batch], corpora: Corpora, not_compared: list[dict[str, str]], notes: dict[str, Any]
) -> Iterator[HeldOut]:
    for name, place in corpora.places.items():
        for split in filter(is_test, place.splits):
            if corpora.refusal(place.source):
                not_compared.append({"source": name, "split": split, "reason": "credentialed, not signed for"})
                continue
            try:
                rows = corpora.peek(name, split)
            except UserError as error:
                notes["warnings"].append(f"Not compared with training: {name} {split}: {error}")
                not_compared.append({"source": name, "split": split, "reason": "it cannot be read"})
                continue
            yield HeldOut(name, split, rows)
    for batch in batches:
        asked = batch.ingredient
        if asked.into in (TEST, VALIDATION) and batch.rows and (asked.path or not is_test(asked.split)):
            yield HeldOut(asked.name, asked.split, batch.rows, asked.into)

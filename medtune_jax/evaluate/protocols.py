"""The scoring protocols by name, and which scorer each has for a source."""

from __future__ import annotations

from typing import Literal

from medtune_jax.evaluate import legacy
from medtune_jax.evaluate.legacy import LegacyNer, LegacyNli, LegacyTask
from medtune_jax.evaluate.legacy_relation import NEGATIVE, LegacyRelation
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.source import Published, Source

Protocol = Literal["aligned", "legacy_medtuned"]
PROTOCOLS: tuple[Protocol, ...] = ("aligned", legacy.PROTOCOL)
NO_SCORER = (
    "the Llama2-MedTuned authors published no scorer for it: theirs are for named entities, inference, and relations "
    f"with the label `{NEGATIVE}`"
)


def scorer_of(source: Source, protocol: Protocol) -> Task | None:
    """Returns the task that reads and scores the source's rows under the protocol, None where it has none."""
    return source.task if protocol == "aligned" else _legacy(source.task)


def _legacy(task: Task) -> LegacyTask | None:
    if task.kind == "ner":
        return LegacyNer(task)
    if task.kind == "nli":
        return LegacyNli(task)
    if task.kind == "relation" and NEGATIVE in task.labels:
        return LegacyRelation(task)
    return None


def protocol_of(figure: Published) -> str:
    """Returns the protocol that a published figure was computed by, "" where that is not known.

    The Llama2 rows of the MedTuned paper come from its authors' scripts; that these are the ones of their repository is
    our inference. Nothing is known of the other rows' scorers.
    """
    ours = figure.model.startswith("Llama2") and "2401.00579" in figure.cited
    return legacy.PROTOCOL if ours else ""

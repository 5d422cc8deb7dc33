"""The scoring protocols by name, and which scorer each has for a source."""

from __future__ import annotations

from typing import Literal

from medtune_jax.evaluate import legacy
from medtune_jax.evaluate.legacy import LegacyNer, LegacyNli, LegacyTask
from medtune_jax.evaluate.legacy_relation import NEGATIVE, LegacyRelation
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.source import Source

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

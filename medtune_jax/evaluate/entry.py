"""One source's entry of scores.json: how its texts were read, its figures with intervals, what stands beside them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medtune_jax.errors import UserError
from medtune_jax.evaluate import bootstrap, loglikelihood
from medtune_jax.evaluate.legacy import LegacyTask
from medtune_jax.evaluate.predictions import Prediction
from medtune_jax.evaluate.protocols import Protocol
from medtune_jax.evaluate.table import Table, matrix
from medtune_jax.tasks.base import Parsed, Task
from medtune_jax.tasks.reading import TOO_LONG, read_answer, read_gold
from medtune_jax.tasks.rows import Row, gold_sha256
from medtune_jax.tasks.source import UNSTATED, Published, Source

LOG = logging.getLogger(__name__)

Pairs = Sequence[tuple[str, str]]  # (input, output) of training rows


@dataclass(frozen=True)
class Scored:
    """One source scored.

    Attributes:
      entry: what scores.json says of it.
      table: statistics of its rows.
      documents: statistics of its documents, None where they are not scored.
      mistakes: its lines of errors.jsonl.
    """

    entry: dict[str, Any]
    table: Table
    documents: Table | None
    mistakes: list[dict[str, Any]]


def score_source(
    source: Source,
    task: Task,
    protocol: Protocol,
    predictions: Sequence[Prediction],
    train: Pairs | None,
    resamples: int,
    seed: int,
) -> Scored:
    """Scores the predictions of one source.

    Args:
      task: the protocol's scorer of the source.
      train: pairs that the baselines are fitted on; None = there are none at hand.

    Raises:
      UserError: a row whose gold, meta or log-likelihoods cannot be read.
    """
    read = [read_gold(task, prediction.row, prediction) for prediction in predictions]
    golds = [one.annotation for one in read]
    repaired = sum(one.status == "repaired" for one in read)
    if repaired:
        LOG.info("%s: %d of %d gold outputs are read with repairs.", source.name, repaired, len(read))
    parsed = [read_answer(task, one.generated, one.input, one.finish_reason) for one in predictions]
    own, paired, legacy = _pair(task, golds, parsed)
    table = _table(task, predictions, golds, paired, _likelihoods(task, predictions, golds))
    documents = _document_table(task, predictions, golds, own)
    digest = gold_sha256(Row(one.instruction, one.input, one.output, one.source) for one in predictions)
    split = source.splits.get(digest)
    kinds = Counter(kind for one in own for kind in set(one.problems))
    entry = {
        "task": task.kind,
        "metric": task.metric,
        "split": split,
        "gold_sha256": digest,
        "gold": {"exact": len(read) - repaired, "repaired": repaired},
        "n": len(predictions),
        "groups": len({group for group in table.groups if group}) or None,
        **_figures(task, table, resamples, seed),
        "documents": documents and {"n": len(documents.rows), **_figures(task, documents, resamples, seed)},
        "breakdown": task.breakdown(table.totals()),
        "parse": {
            **{status: sum(one.status == status for one in own) for status in ("exact", "repaired", "unparsable")},
            "kinds": dict(sorted(kinds.items())),
        },
        "finish_reasons": dict(sorted(Counter(one.finish_reason or "unknown" for one in predictions).items())),
        "published": _published(source, split, len(predictions), protocol),
        "baselines": _baselines(task, predictions, golds, train, resamples, seed),
    }
    if legacy is not None:
        entry["legacy"] = legacy
    return Scored(entry, table, documents, _mistakes(source, task, predictions, golds, own, train))


def _pair(
    task: Task, golds: Sequence[Any], parsed: list[Parsed]
) -> tuple[list[Parsed], list[Parsed], dict[str, Any] | None]:
    """Returns (each row's own reading, what is compared with its gold, what a legacy protocol says of both)."""
    return task.pair(golds, parsed) if isinstance(task, LegacyTask) else (parsed, parsed, None)


def _likelihoods(task: Task, predictions: Sequence[Prediction], golds: Sequence[Any]) -> list[dict[str, float]] | None:
    """Returns the rows' statistics of log-likelihoods, None where no row carries any."""
    carried = [one.loglikelihoods is not None for one in predictions]
    if not any(carried) or isinstance(task, LegacyTask):
        return None
    for one, carries in zip(predictions, carried, strict=True):
        if not carries and one.finish_reason != TOO_LONG:
            raise UserError(
                f"{one.source}, row {one.row} has no `loglikelihoods`, but row "
                f"{predictions[carried.index(True)].row} has: all rows of a source need them, or none."
            )
    return [loglikelihood.statistics(task, one, gold) for one, gold in zip(predictions, golds, strict=True)]


def _table(
    task: Task,
    predictions: Sequence[Prediction],
    golds: Sequence[Any],
    parsed: Sequence[Parsed],
    likelihoods: Sequence[dict[str, float]] | None = None,
) -> Table:
    rows = [
        task.statistics(gold, one, prediction.input)
        for gold, one, prediction in zip(golds, parsed, predictions, strict=True)
    ]
    if likelihoods is not None:
        rows = [{**row, **more} for row, more in zip(rows, likelihoods, strict=True)]
    names, statistics = matrix(rows)
    return Table(
        rows=tuple(prediction.row for prediction in predictions),
        groups=tuple(prediction.group for prediction in predictions),
        status=tuple(one.status for one in parsed),
        names=names,
        statistics=statistics,
    )


def _document_table(
    task: Task, predictions: Sequence[Prediction], golds: Sequence[Any], parsed: Sequence[Parsed]
) -> Table | None:
    """Returns the table of the documents (rows of one group), None where no rows share one or the task has no `merge`.

    What a document with a row that cannot be read is worth is said by `merge`, which is given None for such a row.
    """
    members: dict[str | int, list[int]] = {}
    for index, prediction in enumerate(predictions):
        members.setdefault(prediction.group or index, []).append(index)
    if len(members) == len(predictions) or task.merge(golds[:1]) is None:
        return None
    whole_golds, whole_parsed = [], []
    for indices in members.values():
        whole_golds.append(task.merge([golds[index] for index in indices]))
        whole_parsed.append(Parsed(task.merge([parsed[index].annotation for index in indices])))
    firsts = [predictions[indices[0]] for indices in members.values()]
    return _table(task, firsts, whole_golds, whole_parsed)


def _figures(task: Task, table: Table, resamples: int, seed: int) -> dict[str, Any]:
    drawn = table.resampled(task, seed, resamples)
    return {
        "metrics": table.metrics(task),
        "ci95": {name: list(bootstrap.interval(values)) for name, values in drawn.items()},
    }


def _published(source: Source, split: str | None, n: int, protocol: Protocol) -> list[dict[str, Any]]:
    """Returns the published figures, each with whether it is of these rows, a development set and this scorer."""
    return [
        {
            **asdict(figure),
            "rows": _rows_of(figure, source, split),
            "same_n": figure.n == n,
            "development": figure.split == "validation",
            "scorer": _scorer_of(figure, protocol),
        }
        for figure in source.published
    ]


def _scorer_of(figure: Published, protocol: Protocol) -> str:
    if not figure.protocol:
        return "not stated"
    return "same scorer" if figure.protocol == protocol else "other scorer"


def _rows_of(figure: Published, source: Source, split: str | None) -> str:
    """Returns whether a figure is of the scored rows, which are the official `split` (None: of no known hash)."""
    if figure.split == UNSTATED:
        return "rows not stated"
    if split is None and figure.split not in source.splits.values():
        return "rows not verified"  # the registry knows no hash of that split
    return "same rows" if figure.split == split else "other rows"


def _baselines(
    task: Task,
    predictions: Sequence[Prediction],
    golds: Sequence[Any],
    train: Pairs | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Returns name -> metrics and intervals of each model-free answerer, or why it is not available.

    Without training rows the constant answer is fitted on the scored rows, which no constant can beat.
    """
    scored = [(prediction.input, prediction.output) for prediction in predictions]
    entries: dict[str, Any] = {}
    for name, answer in task.baselines(train or scored).items():
        if not train and not name.startswith("constant"):
            entries[name] = {"not_available": "no training rows of this source were given"}
            continue
        parsed = [task.parse(answer(prediction.input), prediction.input) for prediction in predictions]
        own, paired, _ = _pair(task, golds, parsed)
        documents = _document_table(task, predictions, golds, own)
        entries[name] = {
            "fitted_on": "training rows" if train else "the scored rows",
            **_figures(task, _table(task, predictions, golds, paired), resamples, seed),
            "documents": documents and _figures(task, documents, resamples, seed),
        }
    return entries


def _mistakes(
    source: Source,
    task: Task,
    predictions: Sequence[Prediction],
    golds: Sequence[Any],
    parsed: Sequence[Parsed],
    train: Pairs | None,
) -> list[dict[str, Any]]:
    seen = _training_mentions(source.task, train) if train and task.kind == "ner" else None
    return [
        {
            "source": source.name,
            "row": prediction.row,
            "id": prediction.id,
            "kind": error.kind,
            "gold": error.gold,
            "prediction": error.predicted,
            "where": error.where,
            "seen_in_training": None if seen is None else (error.gold or error.predicted) in seen,
            "finish_reason": prediction.finish_reason,
            "input": prediction.input,
            "generated": prediction.generated,
        }
        for prediction, gold, one in zip(predictions, golds, parsed, strict=True)
        for error in task.errors(gold, one, prediction.input)
    ]


def _training_mentions(task: Task, train: Pairs) -> set[str]:
    """Returns the surface texts of all gold mentions: what an answer that cannot be read misses."""
    nothing = Parsed(None)
    golds = [(task.parse(output, text).annotation, text) for text, output in train]
    return {error.gold for gold, text in golds if gold is not None for error in task.errors(gold, nothing, text)}

"""From predictions to scores: parse, sum the statistics, bootstrap, set beside constant answers and published figures.

Protocol `aligned`: each generated text is read by its source's task; a text that cannot be read is wrong, never the
negative class, and touches its own row only. A prompt that was too long is a wrong row; n does not shrink.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.evaluate import bootstrap
from medtune_jax.evaluate.files import make_folder, to_json, to_json_line, write_file
from medtune_jax.evaluate.predictions import FINAL, Prediction, read_predictions
from medtune_jax.evaluate.table import Table, rows_parquet
from medtune_jax.tasks.base import Parsed, Task
from medtune_jax.tasks.registry import Source, find_source
from medtune_jax.tasks.rows import Row, gold_sha256, read_rows

PROVENANCE = "provenance.json"
PROTOCOLS = ("aligned",)
TOO_LONG = "prompt_too_long"


@dataclass(frozen=True)
class Scores:
    """Attributes:
    document: what scores.json holds.
    tables: source name -> its per-row statistics (rows.parquet).
    errors: one JSON-ready object per scored mistake, by source, then row (errors.jsonl).
    private: whether any row comes from a credentialed source, so that files are for their owner only.
    """

    document: dict[str, Any]
    tables: dict[str, Table]
    errors: list[dict[str, Any]]
    private: bool

    def summary(self, out: Path) -> dict[str, Any]:
        """Returns what a verb reports: {"out", "scores", "report", "sources": {name: {n, metric, metrics, ci95,
        parse}}, "not_scored"}; "scores" and "report" are the files in the folder `out`."""
        keys = ("n", "metric", "metrics", "ci95", "parse")
        return {
            "out": str(out),
            "scores": str(out / "scores.json"),
            "report": str(out / "report.html"),
            "sources": {name: {key: entry[key] for key in keys} for name, entry in self.document["sources"].items()},
            "not_scored": self.document["not_scored"],
        }


def score(
    predictions: Sequence[Prediction],
    *,
    protocol: Literal["aligned"] = "aligned",
    train: Sequence[Row] | None = None,
    provenance: dict[str, Any] | None = None,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Scores every source that the registry knows; the others are listed as not scored.

    Args:
      predictions: in row order.
      train: training rows of any sources; the baselines are fitted on them. None = there are none at hand.
      provenance: JSON-ready, carried through.
      resamples, seed: of the bootstrap.

    Raises:
      UserError: an unknown protocol; a gold output that is not in its task's own form; no row that can be scored.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"Unknown protocol '{protocol}'.{did_you_mean(protocol, PROTOCOLS)}")
    known: dict[str, list[Prediction]] = {}
    sources: dict[str, Source] = {}
    unknown: Counter[str] = Counter()
    for prediction in predictions:
        source = find_source(prediction.source)
        if source is None:
            unknown[prediction.source] += 1
        else:
            sources[source.name] = source
            known.setdefault(source.name, []).append(prediction)
    if not known:
        raise _nothing_to_score(unknown)
    entries, tables, errors = {}, {}, []
    for name in sorted(known):
        source = sources[name]
        pairs = None if train is None else _training_pairs(source, train)
        entries[name], tables[name], mistakes = _score_source(source, known[name], pairs, resamples, seed)
        errors += mistakes
    document = {
        "protocol": protocol,
        "provenance": provenance or {},
        "bootstrap": {"resamples": resamples, "seed": seed, "level": bootstrap.LEVEL},
        "sources": entries,
        "not_scored": {
            name: {"n": count, "reason": "the registry of sources does not know it"}
            for name, count in sorted(unknown.items())
        },
    }
    return Scores(document, tables, errors, private=any(sources[name].credentialed for name in known))


def score_file(
    path: str | Path,
    out: str | Path,
    *,
    protocol: Literal["aligned"] = "aligned",
    data: str | Path | None = None,
    train: Sequence[Row] | None = None,
) -> Scores:
    """Scores a predictions file (or its folder) and writes the scores and reports into the folder `out`.

    Args:
      path: predictions.jsonl; the provenance is that of provenance.json beside it, where there is one.
      out: made if needed.
      protocol: how texts are read.
      data: folder whose train split the baselines are fitted on.
      train: these training rows where they have been read before; `data` is then not read.

    Raises:
      UserError: see `read_predictions`, `training_rows`, `score`.
    """
    path = Path(path)
    path = path / FINAL if path.is_dir() else path
    predictions = read_predictions(path)
    provenance: dict[str, Any] = {"model": path.name}
    if (path.parent / PROVENANCE).is_file():
        try:
            provenance = dict(json.loads((path.parent / PROVENANCE).read_bytes()))
        except ValueError:
            raise UserError(f"{path.parent / PROVENANCE} is not a JSON object; mend or remove it.") from None
    provenance["predictions_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    if train is None and data is not None:
        train = training_rows(data, {prediction.source for prediction in predictions})
    scores = score(predictions, protocol=protocol, train=train, provenance=provenance)
    write_scores(Path(out), scores)
    return scores


def check_rows(rows: Sequence[tuple[int, Row]]) -> None:
    """Raises the UserError that `score` would raise about these (position, row) pairs, before a model is asked."""
    known = [(source.task, position, row) for position, row in rows if (source := find_source(row.source))]
    if not known:
        raise _nothing_to_score({row.source for _, row in rows})
    for task, position, row in known:
        _gold(task, position, row)


def _nothing_to_score(names: Iterable[str]) -> UserError:
    return UserError(f"No row can be scored: the registry knows none of the sources {', '.join(sorted(names))}.")


def training_rows(data: str | Path, sources: Collection[str]) -> list[Row] | None:
    """Returns the rows of the data folder's train split that are of `sources`, None where it has no train split."""
    folder = Path(data)
    if not folder.is_dir() or not any(folder.glob("train.*")):
        return None
    wanted = {source.name for name in sources if (source := find_source(name))}
    return [row for row in read_rows(folder, "train") if (source := find_source(row.source)) and source.name in wanted]


def write_scores(out: Path, scores: Scores) -> None:
    """Writes scores.json, rows.parquet, errors.jsonl, report.md and report.html into the folder `out`.

    Raises:
      UserError: they cannot be written.
    """
    from medtune_jax.evaluate import html, report

    make_folder(out)
    redacted = {name for name in scores.tables if known_source(name).credentialed}
    files = {
        "rows.parquet": rows_parquet(scores.tables),
        "errors.jsonl": b"".join(to_json_line(error) for error in scores.errors),
        "report.md": report.markdown(scores.document, scores.errors, redacted).encode("utf-8", "replace"),
        "report.html": html.page(scores.document, scores.errors, redacted).encode("utf-8", "replace"),
        "scores.json": to_json(scores.document),  # last: where it stands, the others stand too
    }
    for name, data in files.items():
        write_file(out / name, data, scores.private)


def known_source(name: str) -> Source:
    """Returns the source that scores name; raises UserError where another version of the registry wrote them."""
    source = find_source(name)
    if source is None:
        raise UserError(f"The registry of sources no longer knows '{name}', which these scores name.")
    return source


def _training_pairs(source: Source, train: Sequence[Row]) -> list[tuple[str, str]]:
    return [(row.input, row.output) for row in train if find_source(row.source) is source]


def _score_source(
    source: Source,
    predictions: list[Prediction],
    train: list[tuple[str, str]] | None,
    resamples: int,
    seed: int,
) -> tuple[dict[str, Any], Table, list[dict[str, Any]]]:
    """Returns (the entry of scores.json, the per-row table, the mistakes)."""
    task = source.task
    golds = [_gold(task, prediction.row, prediction) for prediction in predictions]
    parsed = [_parsed(task, prediction) for prediction in predictions]
    table = _table(task, predictions, golds, parsed)
    split = source.splits.get(digest := _gold_sha256(predictions))
    kinds = Counter(kind for one in parsed for kind in set(one.problems))
    groups = {group for group in table.groups if group}
    entry = {
        "task": task.kind,
        "metric": task.metric,
        "split": split,
        "gold_sha256": digest,
        "n": len(predictions),
        "groups": len(groups) or None,
        **_figures(task, table, resamples, seed),
        "parse": {
            **{status: table.status.count(status) for status in ("exact", "repaired", "unparsable")},
            "kinds": dict(sorted(kinds.items())),
        },
        "finish_reasons": dict(sorted(Counter(one.finish_reason or "unknown" for one in predictions).items())),
        "published": [
            {**asdict(figure), "rows": "same rows" if split is not None and figure.split == split else "other rows"}
            for figure in source.published
        ],
        "baselines": _baselines(task, predictions, golds, train, resamples, seed),
    }
    return entry, table, _mistakes(source, predictions, golds, parsed, train)


def _gold_sha256(predictions: Sequence[Prediction]) -> str:
    return gold_sha256([Row(p.instruction, p.input, p.output, p.source) for p in predictions])


def _gold(task: Task, row: int, one: Prediction | Row) -> Any:
    gold = task.parse(one.output, one.input)
    if gold.status != "exact":
        raise UserError(
            f"{one.source}, row {row}: the gold output is not a well-formed {task.kind} answer "
            f"({', '.join(gold.problems) or gold.status}): {_short(one.output)}. Mend the evaluated rows."
        )
    return gold.annotation


def _parsed(task: Task, prediction: Prediction) -> Parsed:
    if prediction.finish_reason == TOO_LONG:
        return Parsed(None, (TOO_LONG,))
    return task.parse(prediction.generated, prediction.input)


def _table(task: Task, predictions: Sequence[Prediction], golds: Sequence[Any], parsed: Sequence[Parsed]) -> Table:
    rows = [
        task.statistics(gold, one, prediction.input)
        for gold, one, prediction in zip(golds, parsed, predictions, strict=True)
    ]
    names = tuple(sorted(rows[0]))
    return Table(
        rows=tuple(prediction.row for prediction in predictions),
        groups=tuple(prediction.group for prediction in predictions),
        status=tuple(one.status for one in parsed),
        names=names,
        statistics=np.array([[row[name] for name in names] for row in rows], np.float64),
    )


def _figures(task: Task, table: Table, resamples: int, seed: int) -> dict[str, Any]:
    drawn = table.resampled(task, seed, resamples)
    return {
        "metrics": table.metrics(task),
        "ci95": {name: list(bootstrap.interval(values)) for name, values in drawn.items()},
    }


def _baselines(
    task: Task,
    predictions: Sequence[Prediction],
    golds: Sequence[Any],
    train: list[tuple[str, str]] | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Returns name -> metrics and intervals of each model-free answerer, or why it is not available.

    Without training rows the constant answer is fitted on the scored rows, which no constant can beat.
    """
    scored = [(prediction.input, prediction.output) for prediction in predictions]
    entries: dict[str, Any] = {}
    for name, answer in task.baselines(train or scored).items():
        if not train and name != "constant":
            entries[name] = {"not_available": "no training rows of this source were given"}
            continue
        parsed = [task.parse(answer(prediction.input), prediction.input) for prediction in predictions]
        entries[name] = {
            "fitted_on": "training rows" if train else "the scored rows",
            **_figures(task, _table(task, predictions, golds, parsed), resamples, seed),
        }
    return entries


def _mistakes(
    source: Source,
    predictions: Sequence[Prediction],
    golds: Sequence[Any],
    parsed: Sequence[Parsed],
    train: list[tuple[str, str]] | None,
) -> list[dict[str, Any]]:
    seen = _training_mentions(source.task, train) if train and source.task.kind == "ner" else None
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
        for error in source.task.errors(gold, one, prediction.input)
    ]


def _training_mentions(task: Task, train: Sequence[tuple[str, str]]) -> set[str]:
    """Returns the surface texts of all gold mentions: what an answer that cannot be read misses."""
    nothing = Parsed(None)
    golds = [(task.parse(output, text).annotation, text) for text, output in train]
    return {error.gold for gold, text in golds if gold is not None for error in task.errors(gold, nothing, text)}


def _short(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")

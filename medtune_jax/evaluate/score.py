"""From predictions to scores: parse, sum the statistics, bootstrap, set beside constant answers and published figures.

Protocol `aligned`: each generated text is read by its source's task; a text that cannot be read is wrong, never the
negative class, and touches its own row (and its row's document) only. A prompt that was too long is a wrong row; n does
not shrink. Protocol `legacy_medtuned`: see legacy.py.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.evaluate import bootstrap
from medtune_jax.evaluate.entry import score_source
from medtune_jax.evaluate.files import make_folder, to_json, to_json_line, write_file
from medtune_jax.evaluate.predictions import FINAL, Prediction, read_predictions, unanswered
from medtune_jax.evaluate.protocols import NO_SCORER, PROTOCOLS, Protocol, scorer_of
from medtune_jax.evaluate.table import Table, rows_parquet
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.definition import definition_of, register_definitions
from medtune_jax.tasks.reading import read_gold
from medtune_jax.tasks.registry import find_source
from medtune_jax.tasks.rows import Row, read_rows
from medtune_jax.tasks.source import Source

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Scores:
    """Attributes:
    document: what scores.json holds.
    tables: source name -> the statistics of its rows (rows.parquet).
    documents: source name -> those of its documents, where they are scored.
    errors: one JSON-ready object per scored mistake, by source, then row (errors.jsonl).
    private: whether any row comes from a credentialed source, so that files are for their owner only.
    """

    document: dict[str, Any]
    tables: dict[str, Table]
    documents: dict[str, Table]
    errors: list[dict[str, Any]]
    private: bool

    def summary(self, out: Path) -> dict[str, Any]:
        """Returns what a verb reports: {"out", "scores", "report", "sources": {name: {n, metric, metrics, ci95,
        documents, parse, and legacy where scored so}}, "not_scored"}; "scores" and "report" are files in `out`."""
        keys = ("n", "metric", "metrics", "ci95", "documents", "parse", "legacy")
        return {
            "out": str(out),
            "scores": str(out / "scores.json"),
            "report": str(out / "report.html"),
            "sources": {
                name: {key: entry[key] for key in keys if key in entry}
                for name, entry in self.document["sources"].items()
            },
            "not_scored": self.document["not_scored"],
        }


def score(
    predictions: Sequence[Prediction],
    *,
    protocol: Protocol = "aligned",
    train: Sequence[Row] | None = None,
    provenance: dict[str, Any] | None = None,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Scores every source that the registry knows and the protocol can score; the others are listed as not scored.

    Args:
      predictions: in row order.
      protocol: how texts are read and scored.
      train: training rows of any sources; the baselines are fitted on them. None = there are none at hand.
      provenance: JSON-ready, carried through.
      resamples, seed: of the bootstrap.

    Raises:
      UserError: an unknown protocol; a row whose gold output, meta or log-likelihoods cannot be read; no row that can
        be scored.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"Unknown protocol '{protocol}'.{did_you_mean(protocol, PROTOCOLS)}")
    by_name: dict[str, list[Prediction]] = {}
    sources: dict[str, Source] = {}
    scorers: dict[str, Task | None] = {}
    left_out: Counter[tuple[str, str]] = Counter()
    for prediction in predictions:
        source = find_source(prediction.source)
        if source is None:
            left_out[prediction.source, _UNKNOWN] += 1
            continue
        if source.name not in scorers:
            scorers[source.name] = scorer_of(source, protocol)
        if scorers[source.name] is None:
            left_out[source.name, NO_SCORER] += 1
        else:
            sources[source.name] = source
            by_name.setdefault(source.name, []).append(prediction)
    if not by_name:
        raise _nothing_to_score(left_out)
    entries, tables, documents, errors = {}, {}, {}, []
    for name in sorted(by_name):
        source = sources[name]
        task = scorers[name]
        assert task is not None
        pairs = None if train is None else _training_pairs(source, train)
        scored = score_source(source, task, protocol, by_name[name], pairs, resamples, seed)
        definition = definition_of(source)
        entries[name] = scored.entry | ({} if definition is None else {"definition": definition})
        tables[name] = scored.table
        if scored.documents is not None:
            documents[name] = scored.documents
        errors += scored.mistakes
    document = {
        "protocol": protocol,
        "provenance": provenance or {},
        "bootstrap": {"resamples": resamples, "seed": seed, "level": bootstrap.LEVEL},
        "sources": entries,
        "not_scored": {name: {"n": count, "reason": reason} for (name, reason), count in sorted(left_out.items())},
    }
    private = any(source.credentialed for source in sources.values())
    return Scores(document, tables, documents, errors, private)


def score_file(
    path: str | Path,
    out: str | Path,
    *,
    protocol: Protocol = "aligned",
    data: str | Path | None = None,
    train: Sequence[Row] | None = None,
    show_credentialed: bool = False,
) -> Scores:
    """Scores a predictions file (or its folder) and writes the scores and reports into the folder `out`.

    Args:
      path: predictions.jsonl; the provenance is that of provenance.json beside it, where there is one, and the sources
        that a user defined are those that it names.
      out: made if needed.
      protocol: how texts are read and scored.
      data: folder whose train split the baselines are fitted on.
      train: these training rows where they have been read before; `data` is then not read.
      show_credentialed: show the texts of credentialed sources in the reports.

    Raises:
      UserError: see `read_predictions`, `training_rows`, `score`.
    """
    path = Path(path)
    path = path / FINAL if path.is_dir() else path
    predictions = read_predictions(path)
    provenance = _provenance_beside(path)
    register_definitions(provenance.get("source_definitions", {}))
    if train is None and data is not None:
        train = training_rows(data, {prediction.source for prediction in predictions})
    scores = score(predictions, protocol=protocol, train=train, provenance=provenance)
    write_scores(Path(out), scores, show_credentialed)
    return scores


def score_answers(
    answered: Sequence[tuple[Row, str]],
    out: str | Path,
    *,
    provenance: dict[str, Any],
    protocol: Protocol = "aligned",
    data: str | Path | None = None,
    show_credentialed: bool = False,
) -> Scores:
    """Scores what another system answered and writes the files that `score_file` writes.

    Args:
      answered: gold rows in their order, each with the answer in the form of its output.
      provenance: JSON-ready.
      out, protocol, data, show_credentialed: as of `score_file`.

    Raises:
      UserError: see `training_rows`, `score`.
    """
    predictions = [replace(unanswered(at, row), generated=text) for at, (row, text) in enumerate(answered)]
    train = None if data is None else training_rows(data, {row.source for row, _ in answered})
    scores = score(predictions, protocol=protocol, train=train, provenance=provenance)
    write_scores(Path(out), scores, show_credentialed)
    return scores


def _provenance_beside(path: Path) -> dict[str, Any]:
    """Returns the provenance of a predictions file, its own hash in it."""
    provenance: dict[str, Any] = {"model": path.name}
    if (path.parent / PROVENANCE).is_file():
        try:
            provenance = dict(json.loads((path.parent / PROVENANCE).read_bytes()))
        except (ValueError, TypeError):
            raise UserError(f"{path.parent / PROVENANCE} is not a JSON object; mend or remove it.") from None
    return provenance | {"predictions_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def check_rows(rows: Sequence[tuple[int, Row]], protocol: Protocol = "aligned") -> None:
    """Raises the UserError that `score` would raise about these (position, row) pairs, before a model is asked."""
    known = [(source, position, row) for position, row in rows if (source := find_source(row.source))]
    scorers = {source.name: scorer_of(source, protocol) for source, _, _ in known}
    if not any(scorers.values()):
        raise _nothing_to_score((row.source, NO_SCORER if find_source(row.source) else _UNKNOWN) for _, row in rows)
    for source, position, row in known:
        if (task := scorers[source.name]) is not None:
            read_gold(task, position, row)


_UNKNOWN = "the registry of sources does not know it"


def _nothing_to_score(left_out: Iterable[tuple[str, str]]) -> UserError:
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(set(left_out)):
        reasons.setdefault(reason, []).append(name)
    return UserError("No row can be scored: " + "; ".join(f"{why}: {', '.join(of)}" for why, of in reasons.items()))


def training_rows(data: str | Path, sources: Collection[str]) -> list[Row] | None:
    """Returns the rows of the data folder's train split that are of `sources`, None where it has no train split."""
    folder = Path(data)
    if not folder.is_dir() or not any(folder.glob("train.*")):
        return None
    rows = read_rows(folder, "train")  # also makes the sources known that the folder's manifest defines
    wanted = {source.name for name in sources if (source := find_source(name))}
    return [row for row in rows if (source := find_source(row.source)) and source.name in wanted]


def write_scores(out: Path, scores: Scores, show_credentialed: bool = False) -> None:
    """Writes scores.json, rows.parquet, errors.jsonl, report.md and report.html into the folder `out`.

    Args:
      show_credentialed: show the texts of credentialed sources in the two reports.

    Raises:
      UserError: they cannot be written.
    """
    from medtune_jax.evaluate.report import markdown as report
    from medtune_jax.evaluate.report import page as html

    make_folder(out, scores.private)
    redacted = {name for name in scores.tables if known_source(name).credentialed and not show_credentialed}
    files = {
        "rows.parquet": rows_parquet(scores.tables, scores.documents),
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

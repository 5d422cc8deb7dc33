"""Two or more scored runs side by side, with paired bootstrap intervals of their differences from the first.

Every run is resampled with the same draws, so what is common to both cancels. Runs over other gold rows are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medtune_jax.errors import UserError
from medtune_jax.evaluate import bootstrap
from medtune_jax.evaluate.protocols import scorer_of
from medtune_jax.evaluate.score import known_source
from medtune_jax.evaluate.table import Table, read_tables
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.definition import register_definitions


@dataclass(frozen=True)
class Run:
    """A scores.json with the rows.parquet beside it."""

    name: str
    path: Path
    document: dict[str, Any]
    tables: dict[str, Table]
    documents: dict[str, Table]


def compare(paths: Sequence[str | Path], *, resamples: int = bootstrap.RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Compares runs; each path is a scores.json or its folder, the first is the one that the others are held against.

    Returns:
      {"protocol", "bootstrap", "runs": [{name, path, model}], "sources": {name: {task, metric, split, gold_sha256, n,
      groups, metrics: {metric: [{value, ci95} per run, from the second on with difference, difference_ci95 and p]},
      documents: {n, metrics} where all runs have them, else null, documents_left_out: why they are not compared though
      a run has them, else "", crashes: {run name: how its script stopped} under a
      legacy protocol}}, "not_in_all": {source: [run names]}}. A metric that not all runs have is left out.

    Raises:
      UserError: fewer than two paths, a file that is missing or not scores, unequal gold, protocols or groups, a
        rows.parquet that does not belong to its scores.json, or no source that all runs share.
    """
    if len(paths) < 2:
        raise UserError("Comparing needs at least two: --scores A B ..., each a scores.json or its folder.")
    runs = _named([_read(Path(path)) for path in paths])
    first = runs[0]
    for run in runs[1:]:
        if run.document["protocol"] != first.document["protocol"]:
            raise UserError(
                f"{first.path} is scored by protocol {first.document['protocol']}, {run.path} by "
                f"{run.document['protocol']}: score both by the same one."
            )
    everywhere = [name for name in first.tables if all(name in run.tables for run in runs)]
    if not everywhere:
        held = "; ".join(f"{run.name}: {', '.join(run.tables)}" for run in runs)
        raise UserError(f"The runs share no source ({held}).")
    somewhere = {name for run in runs for name in run.tables}
    return {
        "protocol": first.document["protocol"],
        "bootstrap": {"resamples": resamples, "seed": seed, "level": bootstrap.LEVEL},
        "runs": [
            {"name": run.name, "path": str(run.path), "model": run.document["provenance"].get("model", "")}
            for run in runs
        ],
        "sources": {name: _compare_source(name, runs, resamples, seed) for name in everywhere},
        "not_in_all": {
            name: [run.name for run in runs if name in run.tables] for name in sorted(somewhere - set(everywhere))
        },
    }


def _compare_source(name: str, runs: Sequence[Run], resamples: int, seed: int) -> dict[str, Any]:
    entries = [run.document["sources"][name] for run in runs]
    for run, entry in zip(runs[1:], entries[1:], strict=True):
        if entry["gold_sha256"] != entries[0]["gold_sha256"]:
            raise UserError(
                f"{name}: the runs were scored on other gold rows: {runs[0].path} has {entries[0]['gold_sha256']} "
                f"({entries[0]['n']} rows), {run.path} has {entry['gold_sha256']} ({entry['n']} rows). "
                "Score both on the same rows in the same order."
            )
    task = scorer_of(known_source(name), runs[0].document["protocol"])
    if task is None:
        raise UserError(f"{name}: protocol {runs[0].document['protocol']} no longer scores it. Score again.")
    groups = _shared_groups(name, runs)
    tables = [replace(run.tables[name], groups=groups) for run in runs]
    for run, table, entry in zip(runs, tables, entries, strict=True):
        _check(table, task, entry, f"{run.path}: rows.parquet beside it does not give its figures for {name}.")
    first = entries[0]
    documents, left_out = _compare_documents(name, runs, entries, task, resamples, seed)
    crashes = {
        run.name: entry["legacy"]["crash"] for run, entry in zip(runs, entries, strict=True) if "legacy" in entry
    }
    return {
        **{key: first[key] for key in ("task", "metric", "split", "gold_sha256", "n")},
        "groups": len(set(groups) - {""}) or None,
        "metrics": _side_by_side(tables, task, resamples, seed),
        "documents": documents,
        "documents_left_out": left_out,
        "crashes": {run: crash for run, crash in crashes.items() if crash},
    }


def _compare_documents(
    name: str, runs: Sequence[Run], entries: Sequence[Mapping[str, Any]], task: Task, resamples: int, seed: int
) -> tuple[dict[str, Any] | None, str]:
    """Returns ({"n", "metrics"}, "") where all runs have documents, else (None, why where a run has them, else "").

    Runs that have them have the same ones: their gold rows are the same in the same order, and so are their groups.
    """
    tables = [run.documents[name] for run in runs if name in run.documents]
    if not tables:
        return None, ""
    if len(tables) < len(runs):
        without = ", ".join(run.name for run in runs if name not in run.documents)
        return None, f"not scored by document: {without}, whose predictions carry no `group`"
    for run, table, entry in zip(runs, tables, entries, strict=True):
        said = f"{run.path}: rows.parquet beside it does not give its figures for the documents of {name}."
        _check(table, task, entry["documents"], said)
    return {"n": len(tables[0].rows), "metrics": _side_by_side(tables, task, resamples, seed)}, ""


def _side_by_side(tables: Sequence[Table], task: Task, resamples: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Returns metric -> figures of each run, differences from the first; only metrics that all runs have."""
    values = [table.metrics(task) for table in tables]
    drawn = [table.resampled(task, seed, resamples) for table in tables]
    compared: dict[str, list[dict[str, Any]]] = {}
    for metric in values[0]:
        if not all(metric in of for of in values):
            continue
        compared[metric] = [
            {"value": of[metric], "ci95": list(bootstrap.interval(draws[metric]))}
            for of, draws in zip(values, drawn, strict=True)
        ]
        for figures, draws in zip(compared[metric][1:], drawn[1:], strict=True):
            differences = draws[metric] - drawn[0][metric]
            figures["difference"] = figures["value"] - compared[metric][0]["value"]
            figures["difference_ci95"] = list(bootstrap.interval(differences))
            figures["p"] = bootstrap.two_sided_p(differences)
    return compared


def _shared_groups(name: str, runs: Sequence[Run]) -> tuple[str, ...]:
    """Returns the groups that the runs agree on; a run whose predictions held none takes those of the others."""
    known = {run.tables[name].groups: run for run in runs if any(run.tables[name].groups)}
    if len(known) > 1:
        paths = " and ".join(str(run.path) for run in known.values())
        raise UserError(
            f"{name}: {paths} group the same rows differently (column `group`); evaluate them on the same data."
        )
    return next(iter(known), runs[0].tables[name].groups)


def _check(table: Table, task: Task, entry: Mapping[str, Any], problem: str) -> None:
    """Raises UserError where the table does not give the entry's metrics."""
    found = table.metrics(task) if len(table.rows) == entry["n"] else {}
    stated = entry["metrics"]
    if found.keys() != stated.keys() or any(not math.isclose(found[m], stated[m], abs_tol=1e-9) for m in found):
        raise UserError(f"{problem} Score the predictions again with `medtune score`.")


def _read(path: Path) -> Run:
    if path.is_dir():
        path = path / "scores.json"
    if not path.is_file():
        raise UserError(f"No scores: {path} does not exist. `medtune evaluate` and `medtune score` write it.")
    try:
        document = json.loads(path.read_bytes())
        protocol, sources = document["protocol"], document["sources"]
        definitions = {name: entry["definition"] for name, entry in sources.items() if "definition" in entry}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a scores.json as `medtune score` writes it.") from None
    register_definitions(definitions)
    tables, documents = read_tables(path.parent / "rows.parquet")
    if tables.keys() != sources.keys():
        raise UserError(f"{path}, protocol {protocol}: rows.parquet beside it holds other sources. Score again.")
    return Run("", path, document, tables, documents)


def _named(runs: Sequence[Run]) -> list[Run]:
    """Names each run by its folder; by as many parent folders as it takes to tell all apart."""
    folders = [run.path.resolve().parent.parts[1:] for run in runs]
    for depth in range(1, max(map(len, folders), default=0) + 1):
        names = ["/".join(parts[-depth:]) for parts in folders]
        if len(set(names)) == len(names):
            return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    return [replace(run, name=f"{index}: {run.path.parent.name}") for index, run in enumerate(runs, 1)]

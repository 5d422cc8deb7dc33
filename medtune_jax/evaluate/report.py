"""report.md, and what both reports say of a scores.json: which lines a table has, in which order, in which words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# Columns after the leading metric; metrics that are not named here follow by name.
_ORDER = ("f1", "precision", "recall", "f1_strict", "f1_positive", "accuracy", "macro_f1", "echo_rate")
MARKDOWN_ERRORS = 20  # per source; all of them lie in errors.jsonl


@dataclass(frozen=True)
class Line:
    """One line of a task's table.

    Attributes:
      who: the answerer.
      kind: what the line is, for its colour.
      metrics: metric name -> value in 0..1; empty where there is none, `note` then says why.
      ci95: metric name -> (low, high).
      note: provenance, or why there is no figure.
    """

    who: str
    kind: Literal["model", "baseline", "published"]
    metrics: Mapping[str, float]
    ci95: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""


def lines(entry: Mapping[str, Any]) -> list[Line]:
    """Returns the lines of one source's table: the model, the baselines, figures published on the same rows."""
    found = [Line("this model", "model", entry["metrics"], entry["ci95"])]
    for name, figures in sorted(entry["baselines"].items()):
        who = {"constant": "constant answer", "train_dictionary": "train dictionary"}.get(name, name)
        if "not_available" in figures:
            found.append(Line(who, "baseline", {}, note=f"not available: {figures['not_available']}"))
        else:
            note = f"fitted on {figures['fitted_on']}"
            found.append(Line(who, "baseline", figures["metrics"], figures["ci95"], note))
    for figure in published(entry, "same rows"):
        metrics = {figure["metric"]: figure["value"]}
        note = f"{figure['cited']}; same rows{_development(figure)}; {_scorer(figure)}"
        found.append(Line(figure["model"], "published", metrics, note=note))
    return found


def published(entry: Mapping[str, Any], rows: Literal["same rows", "other rows"]) -> list[Mapping[str, Any]]:
    return [figure for figure in entry["published"] if figure["rows"] == rows]


def metric_names(entry: Mapping[str, Any]) -> list[str]:
    """Returns the entry's metrics in the order of columns, the leading one first."""
    ordered = dict.fromkeys((entry["metric"], *_ORDER, *sorted(entry["metrics"])))
    return [name for name in ordered if name in entry["metrics"]]


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f}"


def cell(line: Line, metric: str) -> str:
    """Returns "64.60 [62.10, 67.02]" in percent, "64.60" without an interval, "" without a value."""
    if metric not in line.metrics:
        return ""
    return value_text(line.metrics[metric], line.ci95.get(metric))


def value_text(value: float, ci95: Sequence[float] | None = None) -> str:
    if ci95 is None:
        return percent(value)
    low, high = ci95
    return f"{percent(value)} [{percent(low)}, {percent(high)}]"


def rows_line(entry: Mapping[str, Any]) -> str:
    """Returns one sentence on which rows were scored and how they were resampled."""
    split = f"the official {entry['split']} split" if entry["split"] else "not the rows of any official split we know"
    unit = f"{entry['groups']:,} groups" if entry["groups"] else "rows"
    return f"{entry['n']:,} rows, {split}; intervals: 95%, bootstrap over {unit}; gold {entry['gold_sha256'][:12]}."


def parse_line(entry: Mapping[str, Any]) -> str:
    """Returns one sentence on how the texts could be read."""
    parse, n = entry["parse"], entry["n"]
    text = ", ".join(f"{status} {percent(parse[status] / n)}%" for status in ("exact", "repaired", "unparsable"))
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in parse["kinds"].items())
    return f"Outputs: {text}." + (f" Rows with a defect: {kinds}." if kinds else "")


def notes(entry: Mapping[str, Any]) -> list[str]:
    """Returns sentences on what else is known of a source's figures: gold repairs, documents, a script that stopped."""
    found = []
    if entry["gold"]["repaired"]:
        found.append(f"{entry['gold']['repaired']:,} gold outputs are not quite in the task's form; read with repairs.")
    if documents := entry["documents"]:
        figures = {"metric": entry["metric"], **documents}
        metrics, intervals = documents["metrics"], documents["ci95"]
        values = ", ".join(f"{name} {value_text(metrics[name], intervals[name])}" for name in metric_names(figures))
        found.append(f"By document ({documents['n']:,}): {values}.")
    legacy = entry.get("legacy", {})
    if legacy.get("crash"):
        found.append(
            f"The authors' script stops on these answers ({legacy['crash']}) and gives no figure; "
            f"those here: {legacy['crash_figures']}."
        )
    if legacy.get("best_order"):
        worst, best = (percent(legacy[f"{which}_order"]["micro_f1"]) for which in ("worst", "best"))
        order = ", ".join(legacy["label_order"])
        found.append(f"Labels are looked for in the order {order}; over all orders micro_f1 is {worst} to {best}.")
    return found


def other_rows_line(figure: Mapping[str, Any]) -> str:
    n = f", n = {figure['n']:,}" if figure["n"] else ""
    return (
        f"{figure['model']}: {figure['metric']} {percent(figure['value'])} "
        f"(other rows: {figure['split'] or 'split not stated'}{n}{_development(figure)}; {_scorer(figure)}; "
        f"{figure['cited']})"
    )


def _development(figure: Mapping[str, Any]) -> str:
    return ", a development set" if figure["development"] else ""


def _scorer(figure: Mapping[str, Any]) -> str:
    if figure["scorer"] == "other scorer":
        return f"another scorer, {figure['protocol']}"
    return "the same scorer" if figure["scorer"] == "same scorer" else "scorer not stated"


def provenance_items(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (name, value) pairs of the provenance, nested names joined by a dot."""
    items: list[tuple[str, str]] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key in sorted(value):
                walk(f"{prefix}.{key}" if prefix else str(key), value[key])
        elif isinstance(value, list | tuple):
            items.append((prefix, ", ".join(map(str, value))))
        else:
            items.append((prefix, "" if value is None else str(value)))

    walk("", document["provenance"])
    return items


def markdown(document: Mapping[str, Any], errors: Sequence[Mapping[str, Any]], redacted: Collection[str]) -> str:
    """Returns report.md.

    Args:
      document: what scores.json holds.
      errors: what errors.jsonl holds.
      redacted: sources whose texts must not be shown (credentialed).
    """
    model = document["provenance"].get("model", "predictions")
    limit = document["provenance"].get("limit")
    about = f"Protocol `{document['protocol']}`. Figures in percent."
    parts = [f"# Evaluation of {plain(model)}", about + (f" Only the first {limit} rows per source." if limit else "")]
    parts.append(markdown_table(["source", "task", "n", "metric", "this model", "exact outputs"], _summary(document)))
    for name, entry in document["sources"].items():
        said = "\n".join(map(plain, notes(entry)))
        parts.append(f"## {plain(name)}\n\n{rows_line(entry)}\n{parse_line(entry)}\n{said}".rstrip())
        metrics = metric_names(entry)
        table = [[line.who, *(cell(line, metric) for metric in metrics), line.note] for line in lines(entry)]
        parts.append(markdown_table(["", *metrics, "note"], table))
        if other := published(entry, "other rows"):
            parts.append("Published on other rows, not comparable:")
            parts.append("\n".join(f"- {plain(other_rows_line(figure))}" for figure in other))
        parts.append(_errors(name, errors, name in redacted))
    if document["not_scored"]:
        parts.append("## Not scored")
        items = document["not_scored"].items()
        parts.append("\n".join(f"- {plain(name)}: {left['n']:,} rows; {left['reason']}" for name, left in items))
    parts.append("## Provenance")
    parts.append(markdown_table(["what", "value"], [list(item) for item in provenance_items(document)]))
    return "\n\n".join(part for part in parts if part) + "\n"


def console(result: Mapping[str, Any]) -> str:
    """Returns what `medtune evaluate` and `medtune score` print of a `Scores.summary`."""
    rows = [("source", "n", "metric", "value [95% interval]", "exact")]
    for name, entry in result["sources"].items():
        metric = entry["metric"]
        value = value_text(entry["metrics"][metric], entry["ci95"][metric])
        exact = f"{percent(entry['parse']['exact'] / entry['n'])}%"
        rows.append((name, f"{entry['n']:,}", metric, value, exact))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text = ["  ".join(part.ljust(width) for part, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    stopped = {name: entry["legacy"]["crash"] for name, entry in result["sources"].items() if "legacy" in entry}
    text += [f"{name}: the authors' script stops here: {crash}" for name, crash in stopped.items() if crash]
    text += [f"not scored: {name}, {left['n']:,} rows: {left['reason']}" for name, left in result["not_scored"].items()]
    return "\n".join([*text, f"scores: {result['scores']}", f"report: {result['report']}"])


def _summary(document: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            entry["task"],
            f"{entry['n']:,}",
            entry["metric"],
            cell(lines(entry)[0], entry["metric"]),
            f"{percent(entry['parse']['exact'] / entry['n'])}%",
        ]
        for name, entry in document["sources"].items()
    ]


def _errors(name: str, errors: Sequence[Mapping[str, Any]], redacted: bool) -> str:
    own = [error for error in errors if error["source"] == name]
    if not own:
        return "No errors."
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(Counter(error["kind"] for error in own).items()))
    head = f"Errors: {kinds}."
    if redacted:
        return f"{head} Their texts are not shown: the source is credentialed. They lie in errors.jsonl."
    if len(own) > MARKDOWN_ERRORS:
        head += f" The first {MARKDOWN_ERRORS} of {len(own):,}; all of them lie in errors.jsonl."
    seen = {True: "yes", False: "no", None: ""}
    shown = [
        [str(error["row"]), error["kind"], error["gold"], error["prediction"], seen[error["seen_in_training"]]]
        for error in own[:MARKDOWN_ERRORS]
    ]
    return f"{head}\n\n{markdown_table(['row', 'kind', 'gold', 'prediction', 'seen in training'], shown)}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of plain texts, "" where there are no rows."""
    if not rows:
        return ""
    written = ["| " + " | ".join(map(plain, row)) + " |" for row in (head, *rows)]
    return "\n".join([written[0], "|" + " --- |" * len(head), *written[1:]])


def plain(text: str) -> str:
    """Returns text that Markdown shows as it is, on one line."""
    # An underscore inside a word means nothing in Markdown, and names such as f1_strict stay readable without a mark.
    return re.sub(r"[\\`*\[\]<>|#]|(?<![^\W_])_|_(?![^\W_])", lambda mark: f"\\{mark[0]}", " ".join(str(text).split()))

"""report.md and what the command prints: the figures of report.html in short."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

from medtune_jax.evaluate.report import text as say
from medtune_jax.evaluate.report.text import Entry
from medtune_jax.tasks.registry import find_source

MARKDOWN_ERRORS = 20  # per source; all of them lie in errors.jsonl


def markdown(document: Mapping[str, Any], errors: Sequence[Mapping[str, Any]], redacted: Collection[str]) -> str:
    """Returns report.md.

    Args:
      document: what scores.json holds.
      errors: what errors.jsonl holds.
      redacted: sources whose texts must not be shown (credentialed).
    """
    model = document["provenance"].get("model", "predictions")
    parts = [f"# Evaluation of {plain(model)}", plain(", ".join(say.chips(document))) + ". Figures in percent."]
    parts.append(say.protocol_about(document["protocol"]))
    kinds = {entry["task"] for entry in document["sources"].values()}
    reading = say.protocol_reading(document["protocol"], kinds).items()
    parts.append("\n".join(f"- {kind}: {text}" for kind, text in reading))
    for family, entries in say.families(document["sources"]).items():
        parts += [f"## {family}", family_table(entries)]
        if any(entry["published"] for entry in entries.values()):
            parts.append(
                "Published figures in parentheses are not comparable: other rows or rows that are not verified, "
                "another scorer or metric."
            )
        parts.append(plain(say.development_note(entries)))
    own = say.by_source(errors)
    for name, entry in document["sources"].items():
        parts += _source(name, entry)
        parts.append(_errors(own.get(name, []), name in redacted))
    if document["not_scored"]:
        parts.append("## Not scored")
        items = document["not_scored"].items()
        parts.append("\n".join(f"- {plain(name)}: {left['n']:,} rows; {plain(left['reason'])}" for name, left in items))
    parts.append("## Provenance")
    parts.append(markdown_table(["what", "value"], [list(item) for item in say.provenance_items(document)]))
    return "\n\n".join(part for part in parts if part) + "\n"


def family_table(entries: Mapping[str, Entry]) -> str:
    """Returns one line per source: ours, how the answers were read, the baselines, the published figures."""
    baselines, published = say.baseline_columns(entries), say.published_columns(entries)
    head = ["source", "n", "metric", "this model", "exact / repaired / unparsable", *baselines.values(), *published]
    rows = []
    for name, entry in entries.items():
        metric = entry["metric"]
        ours = say.value_text(entry["metrics"][metric], entry["ci95"][metric])
        row = [name, f"{entry['n']:,}", metric, ours + " (its script stops)" * say.stops(entry), say.shares_text(entry)]
        for baseline in baselines:
            figures = entry["baselines"].get(baseline, {})
            row.append(say.percent(figures["metrics"][metric]) if metric in figures.get("metrics", {}) else "")
        row += ["; ".join(_published(entry, column)) for column in published]
        rows.append(row)
    return markdown_table(head, rows)


def _published(entry: Entry, column: str) -> list[str]:
    found = []
    for figure in entry["published"]:
        if say.published_column(figure) == column:
            said = [say.published_text(figure, entry["metric"]), ", ".join(say.marks(figure, entry["metric"]))]
            named = [figure["model"]] if "MedTuned" not in column else []
            found.append(" ".join(part for part in [*named, *said] if part))
    return found


def _source(name: str, entry: Entry) -> list[str]:
    """Returns the parts of one source's section, errors aside."""
    said = [say.rows_line(entry), say.parse_line(entry), say.legacy_line(entry), *say.line_notes(entry)]
    parts = [f"### {plain(name)}", "\n".join(plain(line) for line in said if line)]
    lines = [line for line in say.lines(entry) if line.metrics]
    table = [[metric, *(line.text(metric) for line in lines)] for metric in say.metric_names(entry)]
    parts.append(markdown_table(["metric", *(line.who for line in lines)], table))
    if rates := say.label_rates(entry["breakdown"]):
        labels = [
            [
                label,
                *(f"{of[name]:,}" for name in say.COUNTS),
                *(say.percent(of[name]) if name in of else "" for name in say.RATES),
            ]
            for label, of in rates.items()
        ]
        parts.append(markdown_table(["label", *say.COUNTS, *say.RATES], labels))
    if entry["published"]:
        rows = [
            [figure["model"], figure["metric"], say.published_text(figure, entry["metric"]), say.rows_text(figure)]
            for figure in entry["published"]
        ]
        rows = [[*row, say.scorer_text(of), of["cited"]] for row, of in zip(rows, entry["published"], strict=True)]
        parts.append(markdown_table(["published", "metric", "value", "rows", "scorer", "cited"], rows))
    return parts


def _errors(own: Sequence[Mapping[str, Any]], redacted: bool) -> str:
    if not own:
        return "No errors."
    head = f"Errors: {plain(say.kinds_text(own))}."
    if redacted:
        return f"{head} {plain(say.NOT_SHOWN)}"
    if len(own) > MARKDOWN_ERRORS:
        head += f" The first {MARKDOWN_ERRORS} of {len(own):,}; all of them lie in errors.jsonl."
    seen = {True: "yes", False: "no", None: ""}
    shown = [
        [str(error["row"]), error["kind"], error["gold"], error["prediction"], seen[error["seen_in_training"]]]
        for error in own[:MARKDOWN_ERRORS]
    ]
    return f"{head}\n\n{markdown_table(['row', 'kind', 'gold', 'prediction', 'seen in training'], shown)}"


def console(result: Mapping[str, Any]) -> str:
    """Returns what `medtune evaluate` and `medtune score` print of a `Scores.summary`, sources by family."""
    rows: list[tuple[str, ...]] = [("source", "n", "metric", "value", "95% interval", "exact", "unparsable")]
    families = [*say.FAMILIES, say.OTHER]
    by_family = sorted(result["sources"].items(), key=lambda item: families.index(_family(item[0])))
    for family, entries in groupby(by_family, key=lambda item: _family(item[0])):
        rows.append((family,))
        for name, entry in entries:
            parse = [f"{say.percent(entry['parse'][status] / entry['n'], 1)}%" for status in ("exact", "unparsable")]
            rows.append((f"  {name}", f"{entry['n']:,}", *_value(entry, entry["metric"]), *parse))
            if entry["documents"]:
                documents = entry["documents"]
                rows.append(("    documents", f"{documents['n']:,}", *_value(documents, entry["metric"])))
    text = aligned(rows, left=(0, 2))
    text += [
        f"{name}: the authors' script stops here ({entry['legacy']['crash']})"
        for name, entry in result["sources"].items()
        if say.stops(entry)
    ]
    text += [f"not scored: {name}, {left['n']:,} rows: {left['reason']}" for name, left in result["not_scored"].items()]
    return "\n".join([*text, f"scores: {result['scores']}", f"report: {result['report']}"])


def _family(name: str) -> str:
    source = find_source(name)
    return say.family_of(source.task.kind if source else "")


def _value(figures: Mapping[str, Any], metric: str) -> tuple[str, str, str]:
    return metric, say.percent(figures["metrics"][metric]), say.interval_text(figures["ci95"][metric])


def aligned(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Returns lines of columns, right-aligned except those in `left`; a row of one cell is a heading of its own."""
    full = [row for row in rows if len(row) > 1]
    columns = max(map(len, full))
    widths = [max((len(row[at]) for row in full if at < len(row)), default=0) for at in range(columns)]
    return [
        "  ".join(
            part.ljust(width) if at in left else part.rjust(width)
            for at, (part, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]


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

"""report.html: one self-contained page, no network; every text of a model or a corpus is escaped."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

from medtune_jax.evaluate.report import parts
from medtune_jax.evaluate.report import text as say
from medtune_jax.evaluate.report.errors import error_section
from medtune_jax.evaluate.report.parts import Bar, Mark
from medtune_jax.evaluate.report.text import Entry

_SHAPES = {"constant": "constant", "train_dictionary": "dictionary"}


def page(document: Mapping[str, Any], errors: Sequence[Mapping[str, Any]], redacted: Collection[str]) -> str:
    """Returns report.html.

    Args:
      document: what scores.json holds.
      errors: what errors.jsonl holds, by source, then row.
      redacted: sources whose texts must not be shown (credentialed).
    """
    model = str(document["provenance"].get("model", "predictions"))
    sources = document["sources"]
    anchors = {name: f"source-{number}" for number, name in enumerate(sources, 1)}
    own = say.by_source(errors)
    body = [_header(document, model)]
    body += [_family(family, entries, anchors) for family, entries in say.families(sources).items()]
    body += [
        _source(name, entry, anchors[name], own.get(name, []))
        for entries in say.families(sources).values()
        for name, entry in entries.items()
    ]
    body.append(error_section({name: entry["task"] for name, entry in sources.items()}, own, redacted))
    if document["not_scored"]:
        items = "".join(
            f"<li>{escape(name)}: {left['n']:,} rows; {escape(left['reason'])}</li>"
            for name, left in document["not_scored"].items()
        )
        body.append(f"<section><h2>Not scored</h2><ul>{items}</ul></section>")
    rows = [parts.row(escape(name), parts.cell(value)) for name, value in say.provenance_items(document)]
    body.append(
        f"<section><h2>Provenance</h2>{parts.table('Provenance', ['what', 'said'], rows, 'plain said', [1])}</section>"
    )
    return parts.frame(f"Evaluation of {model}", "\n".join(body))


def _header(document: Mapping[str, Any], model: str) -> str:
    protocol = document["protocol"]
    chips = "".join(f'<span class="chip">{escape(chip)}</span>' for chip in say.chips(document))
    reading = say.protocol_reading(protocol, {entry["task"] for entry in document["sources"].values()})
    listed = "".join(f"<dt>{escape(kind)}</dt><dd>{_code(text)}</dd>" for kind, text in reading.items())
    return (
        f'<header><div class="soft small">Evaluation of</div><h1>{escape(model)}</h1><div class="chips">{chips}</div>'
        f'<p class="{"small" if protocol == "aligned" else "warning"}">{escape(say.protocol_about(protocol))}</p>'
        f'<dl class="small">{listed}</dl><p class="soft small">Figures in percent with 95% bootstrap intervals.</p>'
        "</header>"
    )


def _code(text: str) -> str:
    """Returns markup in which what stands between backticks is code."""
    pieces = map(escape, text.split("`"))
    return "".join(f"<code>{piece}</code>" if at % 2 else piece for at, piece in enumerate(pieces))


def _family(family: str, entries: Mapping[str, Entry], anchors: Mapping[str, str]) -> str:
    """Returns a family's section: one row per source, notes on the published figures, bars."""
    baselines, published = say.baseline_columns(entries), say.published_columns(entries)
    head = ["source", "metric", "this model", "exact / repaired / unparsable", *baselines.values(), *published]
    rows = []
    for name, entry in entries.items():
        metric = entry["metric"]
        heading = (
            f'<a href="#{anchors[name]}">{escape(name)}</a>'
            f'<span class="ci">{entry["n"]:,} rows, {escape(entry["split"] or "split unknown")}</span>'
        )
        ours = [say.interval_text(entry["ci95"][metric]), "the authors' script stops" if say.stops(entry) else ""]
        read = f'<td class="read">{parts.parse_bar(entry)}{say.shares_text(entry)}</td>'
        rows.append(
            parts.row(
                heading,
                parts.cell(metric, "text"),
                parts.figure(say.percent(entry["metrics"][metric]), ours, "model"),
                read,
                *(_baseline(entry["baselines"].get(baseline), metric) for baseline in baselines),
                *(_published(entry, column) for column in published),
            )
        )
    said = []
    if published:
        said.append(
            "Published figures in parentheses are not comparable with ours: other rows or rows that are not verified, "
            "another scorer or another metric. Where each stands is said in its source's section."
        )
        said.append(say.development_note(entries))
    else:
        said.append("No figures published on these sources are known to this version.")
    notes = "".join(f'<p class="soft small">{escape(note)}</p>' for note in said if note)
    drawn = [Bar(name, *_leading(entry), entry["metric"], _marks(entry)) for name, entry in entries.items()]
    return (
        f"<section><h2>{escape(family)}</h2>{parts.table(f'{family}: one row per source', head, rows, 'plain', [1])}"
        f"{notes}{parts.bars(f'{family}, leading metrics', drawn)}</section>"
    )


def _leading(entry: Entry) -> tuple[float, Sequence[float]]:
    return entry["metrics"][entry["metric"]], entry["ci95"][entry["metric"]]


def _baseline(figures: Mapping[str, Any] | None, metric: str) -> str:
    """Returns the cell of a baseline; one fitted on the scored rows, which no constant can beat, says so."""
    if figures is None:
        return parts.cell("")
    if metric not in figures.get("metrics", {}):
        return parts.figure("", ["no training rows"], title=figures.get("not_available", ""))
    here = ["fitted on these rows"] if figures["fitted_on"] == "the scored rows" else []
    return parts.figure(say.percent(figures["metrics"][metric]), here, title=f"fitted on {figures['fitted_on']}")


def _published(entry: Entry, column: str) -> str:
    """Returns the cell of the figures of one class of models, each with what keeps it apart from ours."""
    found = []
    for figure in entry["published"]:
        if say.published_column(figure) != column:
            continue
        metric = entry["metric"]
        named = [] if "MedTuned" in column else [figure["model"]]
        below = "".join(f'<span class="ci">{escape(one)}</span>' for one in [*named, *say.marks(figure, metric)])
        css = "" if say.comparable(figure, metric) else ' class="soft"'
        tip = escape(f"{figure['model']}: {say.rows_text(figure)}; {figure['cited']}")
        found.append(f'<div{css} title="{tip}">{escape(say.published_text(figure, metric))}{below}</div>')
    return f'<td class="published">{"".join(found)}</td>'


def _marks(entry: Entry) -> list[Mark]:
    """Returns what is marked on a source's bar: baselines, and figures published on the same rows and metric."""
    metric = entry["metric"]
    found = [
        Mark(heading, figures["metrics"][metric], _SHAPES[name])
        for name, heading in say.baseline_columns({"": entry}).items()
        if name in _SHAPES and metric in (figures := entry["baselines"][name]).get("metrics", {})
    ]
    for figure in entry["published"]:
        if figure["rows"] == "same rows" and figure["metric"] == metric:
            apart = "" if say.comparable(figure, metric) else ", other scorer"
            found.append(Mark(f"{figure['model']}{apart}", figure["value"], "apart" if apart else "published"))
    return found


def _source(name: str, entry: Entry, anchor: str, errors: Sequence[Mapping[str, Any]]) -> str:
    """Returns a source's section: all metrics, how answers were read, published figures in full, labels."""
    lines = [line for line in say.lines(entry) if line.metrics]
    rows = []
    for metric in say.metric_names(entry):
        note = say.metric_note(metric)
        heading = escape(metric) + (f'<span class="ci">{escape(note)}</span>' if note else "")
        cells = [
            parts.value_cell(line.metrics, line.ci95, metric, "model" if line.who == "this model" else "")
            for line in lines
        ]
        rows.append(parts.row(heading, *cells, css="leading" if metric == entry["metric"] else ""))
    table = parts.table(f"{name}: all metrics", ["metric", *(line.who for line in lines)], rows, "plain")
    said = [say.parse_line(entry), *say.line_notes(entry), f"Errors: {say.kinds_text(errors) or 'none'}."]
    legacy = say.legacy_line(entry)
    link = f'<a href="#errors" data-errors-of="{escape(name)}">Show them</a>' if errors else ""
    return (
        f'<section id="{anchor}"><h2>{escape(name)} <span class="soft small">{escape(entry["task"])}</span></h2>'
        f'<p class="soft small">{escape(say.rows_line(entry))}</p>'
        + (f'<p class="warning small">{escape(legacy)}</p>' if legacy else "")
        + f'<div class="side">{table}{parts.breakdown(name, entry["breakdown"])}</div>{parts.parse_bar(entry)}'
        + f'<p class="small">{escape(" ".join(said))} {link}</p>{_published_table(name, entry)}</section>'
    )


def _published_table(name: str, entry: Entry) -> str:
    rows = [
        parts.row(
            escape(figure["model"]),
            parts.cell(figure["metric"], "text"),
            parts.cell(say.published_text(figure, entry["metric"])),
            parts.cell(say.rows_text(figure), "text wrap"),
            parts.cell(say.scorer_text(figure), "text"),
            parts.cell(figure["cited"], "text wrap"),
        )
        for figure in entry["published"]
    ]
    head = ["model", "metric", "value", "rows", "scorer", "cited"]
    return parts.table(f"Published figures of {name}", head, rows, "", [1, 3, 4, 5])

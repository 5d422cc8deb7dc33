"""report.html: one self-contained page, no network; every text of a model or a corpus is escaped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from medtune_jax.evaluate import report
from medtune_jax.evaluate.assets import CSS, SCRIPT
from medtune_jax.evaluate.report import Line, percent

_TEXT_COLUMNS = frozenset({"task", "metric", "run", "model", "scores", "note", "what", "said"})
ROWS_SHOWN = 1000  # rows with errors per source that the page carries; all of them lie in errors.jsonl


def page(document: Mapping[str, Any], errors: Sequence[Mapping[str, Any]], redacted: Collection[str]) -> str:
    """Returns report.html.

    Args:
      document: what scores.json holds.
      errors: what errors.jsonl holds, by source, then row.
      redacted: sources whose texts must not be shown (credentialed).
    """
    provenance = document["provenance"]
    model = str(provenance.get("model", "predictions"))
    sections = [_source_section(name, entry, errors) for name, entry in document["sources"].items()]
    body = [_header(document, model), *sections, _error_section(document, errors, redacted)]
    if document["not_scored"]:
        items = "".join(
            f"<li>{escape(name)}: {left['n']:,} rows; {escape(left['reason'])}</li>"
            for name, left in document["not_scored"].items()
        )
        body.append(f"<section><h2>Not scored</h2><ul>{items}</ul></section>")
    body.append(_provenance(document))
    return frame(f"Evaluation of {model}", "\n".join(body))


def frame(title: str, body: str) -> str:
    """Returns a whole document around `body`, which is already markup."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def bars(lines: Sequence[Line], metric: str) -> str:
    """Returns an inline SVG: one bar per line that has `metric`, with its interval, on an axis from 0 to 100."""
    lines = [line for line in lines if metric in line.metrics]
    left, width, step = 210, 480, 28
    height = step * len(lines) + 24
    parts = [
        f'<line class="grid" x1="{left + width * tick / 100:g}" x2="{left + width * tick / 100:g}" y1="0" '
        f'y2="{height - 18}"/><text class="tick" x="{left + width * tick / 100:g}" y="{height - 4}" '
        f'text-anchor="middle">{tick}</text>'
        for tick in (0, 25, 50, 75, 100)
    ]
    for index, line in enumerate(lines):
        y, value = index * step + 4, line.metrics[metric]
        parts.append(
            f'<text x="{left - 10}" y="{y + 14}" text-anchor="end">{escape(_short(line.who))}</text>'
            f'<rect class="{line.kind}" x="{left}" y="{y}" rx="3" width="{max(width * value, 1):.1f}" height="18"/>'
        )
        end = value
        if metric in line.ci95:
            low, high = line.ci95[metric]
            end = max(value, high)
            x1, x2 = left + width * low, left + width * high
            parts.append(
                f'<path class="whisker" fill="none" '
                f'd="M{x1:.1f} {y + 5}v8M{x2:.1f} {y + 5}v8M{x1:.1f} {y + 9}H{x2:.1f}"/>'
            )
        parts.append(f'<text x="{left + width * end + 8:.1f}" y="{y + 14}">{percent(value)}</text>')
    label = "; ".join(f"{line.who} {percent(line.metrics[metric])}" for line in lines)
    return (
        f'<svg viewBox="0 0 780 {height}" role="img" aria-label="{escape(f"{metric}: {label}")}">{"".join(parts)}</svg>'
    )


def table(head: Sequence[str], rows: Sequence[str], css: str = "") -> str:
    """Returns a table; `head` is text, `rows` are markup <tr>s."""
    cells = "".join(f'<th class="{"text" if name in _TEXT_COLUMNS else ""}">{escape(name)}</th>' for name in head)
    return f'<div class="scroll"><table class="{css}"><tr>{cells}</tr>{"".join(rows)}</table></div>'


def value_cell(text: str) -> str:
    """Returns a <td> for "64.60 [62.10, 67.02]", the interval set back."""
    value, bracket, rest = text.partition(" [")
    interval = f'<span class="ci">[{escape(rest)}</span>' if bracket else ""
    return f"<td>{escape(value)}{interval}</td>"


def _header(document: Mapping[str, Any], model: str) -> str:
    provenance = document["provenance"]
    decoding = provenance.get("decoding")
    chips = [f"protocol {document['protocol']}"]
    if isinstance(decoding, Mapping) and "method" in decoding:
        chips.append(f"{decoding['method']} decoding")
    chips += [f"{name} {provenance[name]}" for name in ("template", "split") if provenance.get(name)]
    if provenance.get("limit"):
        chips.append(f"only the first {provenance['limit']} rows per source")
    rows = []
    for name, entry in document["sources"].items():
        lines = report.lines(entry)
        constant = next((report.cell(line, entry["metric"]) for line in lines if line.who == "constant answer"), "")
        exact = f"{percent(entry['parse']['exact'] / entry['n'])}%"
        rows.append(
            f'<tr><td>{escape(name)}</td><td class="text">{escape(entry["task"])}</td><td>{entry["n"]:,}</td>'
            f'<td class="text">{escape(entry["metric"])}</td>'
            f"{value_cell(report.cell(lines[0], entry['metric']))}"
            f"<td>{escape(constant.partition(' ')[0])}</td><td>{exact}</td></tr>"
        )
    head = ["source", "task", "n", "metric", "this model", "constant answer", "exact outputs"]
    return (
        f'<header><div class="soft small">Evaluation of</div><h1>{escape(model)}</h1><div class="chips">'
        + "".join(f'<span class="chip">{escape(chip)}</span>' for chip in chips)
        + f"</div>{table(head, rows)}"
        + '<div class="soft small">Figures in percent, with 95% bootstrap intervals.</div></header>'
    )


def _source_section(name: str, entry: Mapping[str, Any], errors: Sequence[Mapping[str, Any]]) -> str:
    metrics, lines = report.metric_names(entry), report.lines(entry)
    rows = [
        f'<tr class="{line.kind}"><td>{escape(line.who)}</td>'
        + "".join(value_cell(report.cell(line, metric)) for metric in metrics)
        + f'<td class="note">{escape(line.note)}</td></tr>'
        for line in lines
    ]
    shares = "".join(
        f'<span class="{status}" style="width:{percent(entry["parse"][status] / entry["n"])}%" title="{status}"></span>'
        for status in ("exact", "repaired", "unparsable")
    )
    other = report.published(entry, "other rows")
    listed = "".join(f"<li>{escape(report.other_rows_line(figure))}</li>" for figure in other)
    kinds = Counter(error["kind"] for error in errors if error["source"] == name)
    counted = ", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items())) or "none"
    return (
        f'<section><h2>{escape(name)}</h2><div class="soft small">{escape(report.rows_line(entry))}</div>'
        f"{bars(lines, entry['metric'])}{table(['', *metrics, 'note'], rows)}"
        f'<div class="parse" role="img" aria-label="outputs by how they could be read">{shares}</div>'
        f'<div class="small">{escape(report.parse_line(entry))}</div>'
        + "".join(f'<div class="small">{escape(note)}</div>' for note in report.notes(entry))
        + f'<div class="small">Errors: {escape(counted)}.</div>'
        + (f'<h3>Published on other rows, not comparable</h3><ul class="small">{listed}</ul>' if other else "")
        + "</section>"
    )


def _error_section(document: Mapping[str, Any], errors: Sequence[Mapping[str, Any]], redacted: Collection[str]) -> str:
    shown: list[dict[str, Any]] = []
    notes = []
    for source, of_source in groupby(errors, key=lambda error: error["source"]):
        if source in redacted:
            notes.append(f"{source} is credentialed: its texts are not shown here, they lie in errors.jsonl.")
            continue
        rows = list(_error_rows(of_source))
        if len(rows) > ROWS_SHOWN:
            notes.append(
                f"{source}: the first {ROWS_SHOWN:,} of {len(rows):,} rows with errors; all lie in errors.jsonl."
            )
        shown += rows[:ROWS_SHOWN]
    noted = "".join(f'<p class="soft small">{escape(note)}</p>' for note in notes)
    if not shown:
        return f"<section><h2>Errors</h2>{noted or '<p>None.</p>'}</section>"
    kinds = sorted({error["kind"] for row in shown for error in row["errors"]})
    buttons = "".join(
        f'<button type="button" data-kind="{escape(kind)}" aria-pressed="false">{escape(kind)}</button>'
        for kind in kinds
    )
    sources = list(dict.fromkeys(row["source"] for row in shown))
    options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in sources)
    # "<" is written as an escape of JSON, so that no text can close the element that it stands in.
    data = json.dumps(shown, ensure_ascii=True).replace("<", "\\u003c")
    return (
        f"<section><h2>Errors</h2>{noted}"
        '<p class="small"><span class="g">gold</span> <span class="p">prediction</span> '
        '<span class="soft" id="errors-count"></span></p><div class="filters">'
        f'<select id="filter-source" aria-label="source"><option value="">all sources</option>{options}</select>'
        '<select id="filter-seen" aria-label="mention"><option value="">seen or not</option>'
        '<option value="true">seen in training</option><option value="false">not seen in training</option></select>'
        f'{buttons}<input id="filter-text" type="search" placeholder="Find text" aria-label="find text"></div>'
        '<noscript>The list needs JavaScript; all errors lie in errors.jsonl.</noscript><div id="errors-list"></div>'
        '<button type="button" id="errors-more" hidden>Show more</button></section>'
        f'<script type="application/json" id="errors-data">{data}</script><script>{SCRIPT}</script>'
    )


def _error_rows(errors: Iterator[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields one object per row with all its errors, as the page's script reads it."""
    for row, of_row in groupby(errors, key=lambda error: error["row"]):
        together = list(of_row)
        first = together[0]
        yield {
            "source": first["source"],
            "row": row,
            "id": first["id"],
            "finish": first["finish_reason"] if first["finish_reason"] in ("length", "prompt_too_long") else "",
            "pieces": _pieces(first["input"], [error["where"] for error in together]),
            "generated": first["generated"],
            "errors": [
                {
                    "kind": error["kind"],
                    "gold": error["gold"],
                    "prediction": error["prediction"],
                    "seen": error["seen_in_training"],
                }
                for error in together
            ],
        }


def _pieces(text: str, wheres: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Cuts `text` into (piece, marks): "g" inside a gold span, "p" inside a predicted one; spans are token indices."""
    tokens = text.split(" ")
    marks = [""] * len(tokens)
    for name, mark in (("gold", "g"), ("predicted", "p")):
        for where in wheres:
            if isinstance(where.get(name), Sequence) and len(where[name]) == 2:
                first, last = where[name]
                for index in range(first, min(last + 1, len(tokens))):
                    if mark not in marks[index]:
                        marks[index] = f"{marks[index]} {mark}".strip()
    pieces = []
    for mark, run in groupby(zip(tokens, marks, strict=True), key=lambda pair: pair[1]):
        pieces.append((" ".join(token for token, _ in run), mark))
        pieces.append((" ", ""))
    return pieces[:-1]


def _provenance(document: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in report.provenance_items(document)
    ]
    return f"<section><h2>Provenance</h2>{table(['what', 'said'], rows, 'provenance')}</section>"


def _short(text: str, limit: int = 28) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"

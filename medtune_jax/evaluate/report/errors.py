"""The list of errors of report.html: its filters, and the rows that its script reads as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from html import escape
from itertools import accumulate, groupby
from typing import Any

from medtune_jax.evaluate.report import text as say
from medtune_jax.evaluate.report.assets import SCRIPT
from medtune_jax.tasks.registry import find_source

Error = Mapping[str, Any]
Span = tuple[int, int, str]  # first character, the one after the last, "g" (gold) or "p" (prediction)

ROWS_SHOWN = 1000  # rows with errors per source that the page carries; all of them lie in errors.jsonl
BYTES_SHOWN = 6_000_000  # of all sources together; each has its equal share
LONGEST_TEXT = 4000  # characters of one text
_ONE_LABEL = ("relation", "nli", "label")


def error_section(kinds: Mapping[str, str], errors: Mapping[str, Sequence[Error]], redacted: Collection[str]) -> str:
    """Returns the section with the list of errors.

    Args:
      kinds: source -> kind of its task.
      errors: source -> its errors by row.
      redacted: sources whose texts must not be shown; where their answers are labels of a fixed set, labels are.
    """
    shown: list[dict[str, Any]] = []
    notes, hidden = [], []
    for source, of_source in errors.items():
        by_row = [(row, list(of_row)) for row, of_row in groupby(of_source, key=lambda error: error["row"])]
        first = by_row[:ROWS_SHOWN]
        if source in redacted:
            hidden.append(source)
            labels = _public_labels(source, kinds[source])
            if not labels:
                continue
            rows = [_hidden(source, row, of_row, labels) for row, of_row in first]
        else:
            rows = [_shown(source, kinds[source], row, of_row) for row, of_row in first]
        kept = _within(rows, BYTES_SHOWN // len(errors))
        if len(kept) < len(by_row):
            notes.append(
                f"{source}: the first {len(kept):,} of {len(by_row):,} rows with errors; all lie in errors.jsonl."
            )
        shown += kept
    if hidden:
        notes.insert(0, f"{', '.join(hidden)}: {say.NOT_SHOWN}")
    noted = "".join(f'<p class="soft small">{escape(note)}</p>' for note in notes)
    if not shown:
        return f'<section id="errors"><h2>Errors</h2>{noted or "<p>None.</p>"}</section>'
    found = sorted({error["kind"] for row in shown for error in row["errors"]})
    buttons = "".join(
        f'<button type="button" data-kind="{escape(kind)}" aria-pressed="false">{escape(kind)}</button>'
        for kind in found
    )
    sources = dict.fromkeys(row["source"] for row in shown)
    options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in sources)
    # "<" is written as an escape of JSON, so that no text can close the element that it stands in.
    data = json.dumps(shown, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<section id="errors"><h2>Errors</h2>{noted}<p class="small"><span class="g">gold</span> '
        '<span class="p">prediction</span> <span class="soft" id="errors-count" aria-live="polite"></span></p>'
        '<div class="filters" role="group" aria-label="filters">'
        f'<select id="filter-source" aria-label="source"><option value="">all sources</option>{options}</select>'
        '<select id="filter-label" aria-label="label"><option value="">any label</option></select>'
        '<select id="filter-seen" aria-label="mention"><option value="">seen or not</option>'
        '<option value="true">seen in training</option><option value="false">not seen in training</option></select>'
        f'{buttons}<input id="filter-text" type="search" placeholder="Find text" aria-label="find text"></div>'
        '<noscript>The list needs JavaScript; all errors lie in errors.jsonl.</noscript><div id="errors-list"></div>'
        '<div class="filters"><button type="button" id="errors-previous">Previous</button>'
        '<span class="small soft" id="errors-place"></span><button type="button" id="errors-next">Next</button></div>'
        f'</section><script type="application/json" id="errors-data">{data}</script><script>{SCRIPT}</script>'
    )


def _within(rows: Sequence[dict[str, Any]], budget: int) -> list[dict[str, Any]]:
    """Returns the first rows, as many as the budget of bytes allows, but one at least."""
    sizes = accumulate(len(json.dumps(row, separators=(",", ":"))) for row in rows)
    return [row for at, (row, size) in enumerate(zip(rows, sizes, strict=True)) if size <= budget or at == 0]


def _shown(source: str, kind: str, row: int, errors: Sequence[Error]) -> dict[str, Any]:
    """Returns a row with all its errors, as the page's script reads it; keys without a value are left out."""
    first = errors[0]
    cut = first["finish_reason"] if first["finish_reason"] in ("length", "prompt_too_long") else ""
    found = {
        "source": source,
        "row": row,
        "id": first["id"],
        "finish": cut,
        "pieces": _pieces(first["input"], _spans(kind, first["input"], errors)),
        "generated": _short(first["generated"]),
        "errors": [_error(error, _labels(kind, error)) for error in errors],
    }
    return {key: value for key, value in found.items() if value != ""}


def _hidden(source: str, row: int, errors: Sequence[Error], labels: Collection[str]) -> dict[str, Any]:
    """Returns a row of a redacted source: gold and predicted labels, no text and no id."""
    kept = []
    for error in errors:
        gold, predicted = (_if_label(error[name], labels) for name in ("gold", "prediction"))
        kept.append(_error({**error, "gold": gold, "prediction": predicted}, [gold, predicted]))
    return {"source": source, "row": row, "errors": kept}


def _public_labels(source: str, kind: str) -> tuple[str, ...]:
    """Returns the labels that may be shown whatever the rows say: a fixed set, known without them."""
    known = find_source(source)
    return known.task.labels if known and kind in (*_ONE_LABEL, "labels", "choice") else ()


def _if_label(text: str, labels: Collection[str]) -> str:
    """Returns the label alone; of a choice, "B. text", the letter; "" for any other text."""
    return next((one for one in (text, text.partition(".")[0]) if one in labels), "")


def _error(error: Error, labels: Sequence[str]) -> dict[str, Any]:
    found = {
        "kind": error["kind"],
        "gold": _short(error["gold"]),
        "prediction": _short(error["prediction"]),
        "seen": error["seen_in_training"],
        "labels": list(dict.fromkeys(filter(None, labels))),
    }
    return {key: value for key, value in found.items() if value not in ("", None, [])}


def _labels(kind: str, error: Error) -> list[str]:
    """Returns what the list can be filtered by: labels, letters, types of entities, fields."""
    if kind in (*_ONE_LABEL, "labels"):
        return [error["gold"], error["prediction"]]
    if kind == "choice":
        return [error[name].partition(".")[0] for name in ("gold", "prediction")]
    return [error["where"].get(name, "") for name in ("gold_type", "predicted_type", "field", "predicted_field")]


def _spans(kind: str, text: str, errors: Sequence[Error]) -> list[Span]:
    """Returns where gold and predictions stand in the input: entities by their tokens, names and options by search."""
    found = []
    if kind == "ner":
        starts = list(accumulate((len(token) + 1 for token in text.split(" ")), initial=0))
        for error in errors:
            for name, mark in (("gold", "g"), ("predicted", "p")):
                first, last = error["where"].get(name, (0, -1))
                if 0 <= first <= last < len(starts) - 1:
                    found.append((starts[first], starts[last + 1] - 1, mark))
    elif kind in ("choice", "extract"):
        for error in errors:
            for name, mark in (("gold", "g"), ("prediction", "p")):
                places = list(re.finditer(re.escape(error[name]), text, re.IGNORECASE)) if error[name] else []
                # A question's options follow it, so the last place is the option; a name counts where it first stands.
                found += [(*place.span(), mark) for place in (places[-1:] if kind == "choice" else places[:1])]
    return found


def _pieces(text: str, spans: Sequence[Span]) -> list[str | tuple[str, str]]:
    """Cuts a text into unmarked pieces and (piece, marks), marks being "g", "p" or "g p"."""
    short = _short(text)
    end = min(len(text), LONGEST_TEXT)
    changes: list[tuple[int, str, int]] = []
    for first, last, mark in spans:
        if first < end:
            changes += [(first, mark, 1), (min(last, end), mark, -1)]
    open_marks = {"g": 0, "p": 0}
    pieces: list[str | tuple[str, str]] = []
    at = 0
    for place, mark, change in sorted(changes):
        if place > at:
            marks = " ".join(name for name, depth in open_marks.items() if depth)
            pieces.append((text[at:place], marks) if marks else text[at:place])
            at = place
        open_marks[mark] += change
    return pieces + [short[at:]] * (at < len(short))


def _short(text: str) -> str:
    left = len(text) - LONGEST_TEXT
    return text if left <= 0 else f"{text[:LONGEST_TEXT]}… ({left:,} more characters in errors.jsonl)"

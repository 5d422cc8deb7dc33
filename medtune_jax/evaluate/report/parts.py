"""The parts of which report.html and compare.html are made: frame, table, cells, bars, heat table.

Arguments named `markup` are markup already; every other string is text and is escaped here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from medtune_jax.evaluate.report import text as say
from medtune_jax.evaluate.report.assets import CSS

MOST_HEAT_LABELS = 12  # a wider confusion matrix is not read; its labels are then counted one by one
_HEAT = 55  # percent of colour in the fullest cell, so that its number stays readable in either theme
_LEGEND = {
    "constant": "constant answer",
    "dictionary": "train dictionary",
    "published": "published, same rows",
    "apart": "published, same rows, other scorer",
}


@dataclass(frozen=True)
class Mark:
    """A figure marked on a bar.

    Attributes:
      name: what it is, in the legend and for readers of the text alternative.
      value: in 0..1.
      shape: style of the mark: constant, dictionary, published (filled) or apart (hollow).
    """

    name: str
    value: float
    shape: str


@dataclass(frozen=True)
class Bar:
    """One bar: value and interval in 0..1, what is said small beside its name, what is marked on it."""

    who: str
    value: float
    ci95: Sequence[float]
    note: str = ""
    marks: Sequence[Mark] = ()


def frame(title: str, body_markup: str) -> str:
    """Returns a whole document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body_markup}\n</main>\n"
        "</body>\n</html>\n"
    )


def table(
    caption: str, head: Sequence[str], rows_markup: Sequence[str], css: str = "", text: Sequence[int] = ()
) -> str:
    """Returns a table that scrolls sideways where it is too wide; "" without rows.

    Args:
      caption: said to screen readers and, unless css holds `plain`, shown.
      rows_markup: <tr>s that begin with a row's heading.
      text: columns that hold text and are aligned left, beside the first.
    """
    if not rows_markup:
        return ""
    cells = "".join(
        f'<th scope="col"{_css("text" if at == 0 or at in text else "")}>{escape(name)}</th>'
        for at, name in enumerate(head)
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table{_css(css)}>'
        f"<caption>{escape(caption)}</caption><thead><tr>{cells}</tr></thead>"
        f"<tbody>{''.join(rows_markup)}</tbody></table></div>"
    )


def row(heading_markup: str, *cells_markup: str, css: str = "") -> str:
    """Returns a <tr> that begins with its heading."""
    return f'<tr{_css(css)}><th scope="row">{heading_markup}</th>{"".join(cells_markup)}</tr>'


def cell(text: str, css: str = "") -> str:
    """Returns a <td> of plain text."""
    return f"<td{_css(css)}>{escape(text)}</td>"


def figure(value: str, small: Sequence[str] = (), css: str = "", title: str = "") -> str:
    """Returns a cell with a number and, set back below it, an interval or what limits it."""
    below = "".join(f'<span class="ci">{escape(one)}</span>' for one in small if one)
    tip = f' title="{escape(title)}"' if title else ""
    return f"<td{_css(css)}{tip}>{escape(value)}{below}</td>"


def value_cell(metrics: Mapping[str, float], ci95: Mapping[str, Sequence[float]], metric: str, css: str = "") -> str:
    """Returns the cell of a metric with its interval, an empty one without the metric."""
    if metric not in metrics:
        return cell("", css)
    return figure(say.percent(metrics[metric]), [say.interval_text(ci95[metric])] if metric in ci95 else [], css)


def parse_bar(entry: say.Entry) -> str:
    """Returns how the answers were read as a small stacked bar with its numbers."""
    parts = "".join(
        f'<span class="{status}" style="width:{share:.2%}"></span>'
        for status, share in zip(say.STATUSES, say.shares(entry), strict=True)
    )
    said = ", ".join(
        f"{status} {say.percent(of, 1)}%" for status, of in zip(say.STATUSES, say.shares(entry), strict=True)
    )
    return f'<span class="parse" role="img" aria-label="{said}" title="{said}">{parts}</span>'


def bars(caption: str, drawn: Sequence[Bar]) -> str:
    """Returns one bar per figure on an axis from 0 to 100, with intervals, marks, a legend and a text alternative."""
    said = []
    rows = []
    for one in drawn:
        low, high = one.ci95
        beside = "".join(f"; {mark.name} {say.percent(mark.value)}" for mark in one.marks)
        noted = f" ({one.note})" if one.note else ""
        said.append(f"{one.who}{noted} {say.value_text(one.value, one.ci95)}{beside}")
        marks = "".join(
            f'<span class="mark {mark.shape}" style="left:{mark.value:.2%}" title="{escape(mark.name)} '
            f'{say.percent(mark.value)}"></span>'
            for mark in one.marks
        )
        note = f' <span class="soft">{escape(one.note)}</span>' if one.note else ""
        rows.append(
            f'<div class="bar"><span class="who">{escape(one.who)}{note}</span><span class="track">'
            f'<span class="fill" style="width:{one.value:.2%}"></span>'
            f'<span class="whisker" style="left:{low:.2%};width:{high - low:.2%}"></span>{marks}</span>'
            f'<span class="value">{say.percent(one.value)}</span></div>'
        )
    shapes = dict.fromkeys((mark.shape, _LEGEND[mark.shape]) for one in drawn for mark in one.marks)
    legend = "".join(f'<span><span class="mark {shape}"></span> {escape(name)}</span>' for shape, name in shapes)
    axis = "".join(f'<span style="left:{tick}%">{tick}</span>' for tick in (0, 25, 50, 75, 100))
    label = escape(f"{caption}: {'. '.join(said)}")
    return (
        f'<figure class="bars" role="img" aria-label="{label}">'
        f'{"".join(rows)}<div class="bar axis"><span class="who"></span><span class="track">{axis}</span>'
        f'<span class="value"></span></div><div class="legend"><span><span class="mark interval"></span> 95% interval'
        f"</span>{legend}</div></figure>"
    )


def breakdown(name: str, found: Mapping[str, Any]) -> str:
    """Returns a confusion matrix as a heat table, or counts per label, with precision, recall and F1; "" without."""
    rates = say.label_rates(found)
    if not rates:
        return ""
    confusion = found.get("confusion", {})
    if not confusion or len(confusion) > MOST_HEAT_LABELS:
        head = ["label", *say.COUNTS, *say.RATES]
        rows = [
            row(escape(label), *(cell(f"{of[count]:,}") for count in say.COUNTS), *_rates(of))
            for label, of in rates.items()
        ]
        return table(f"Labels of {name}", head, rows)
    answers = list(dict.fromkeys(label for of in confusion.values() for label in of))
    head = ["gold \\ answer", *(label or "unparsable" for label in answers), "rows", *say.RATES]
    rows = []
    for label, of in confusion.items():
        whole = sum(of.values())
        heat = [
            f'<td class="heat{" own" if answer == label else ""}" '
            f'style="--share:{_HEAT * of[answer] / max(1, whole):.1f}%">{of[answer]:,}</td>'
            for answer in answers
        ]
        rows.append(row(escape(label), *heat, cell(f"{whole:,}"), *_rates(rates[label])))
    return table(f"Answers of {name} by gold label; shade is the share of the row", head, rows)


def _rates(of: Mapping[str, float]) -> list[str]:
    return [cell(say.percent(of[rate]) if rate in of else "") for rate in say.RATES]


def _css(names: str) -> str:
    return f' class="{names}"' if names else ""

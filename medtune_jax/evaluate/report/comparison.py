"""compare.md, compare.html, compare.json and what the command prints: runs side by side, differences from the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from medtune_jax.evaluate.files import make_folder, to_json, write_file
from medtune_jax.evaluate.report import parts
from medtune_jax.evaluate.report import text as say
from medtune_jax.evaluate.report.markdown import aligned, markdown_table, plain
from medtune_jax.evaluate.report.parts import Bar
from medtune_jax.evaluate.report.text import Entry

Comparison = Mapping[str, Any]  # what `compare.compare` returns
Figures = Sequence[Mapping[str, Any]]  # of one metric, one per run

_WORDS = (
    "Figures in percent with 95% intervals; differences from the first run, paired bootstrap; p is two-sided and not "
    "corrected for the number of comparisons."
)


def write_comparison(out: Path, comparison: Comparison) -> None:
    """Writes compare.json, compare.md and compare.html into the folder `out`; raises UserError where it cannot."""
    make_folder(out)
    write_file(out / "compare.md", markdown(comparison).encode("utf-8", "replace"))
    write_file(out / "compare.html", page(comparison).encode("utf-8", "replace"))
    write_file(out / "compare.json", to_json(comparison))


def markdown(comparison: Comparison) -> str:
    """Returns compare.md."""
    text = ["# Comparison", f"Protocol `{comparison['protocol']}`. {_WORDS}"]
    runs = [[run["name"], run["model"], run["path"]] for run in comparison["runs"]]
    text.append(markdown_table(["run", "model", "scores"], runs))
    for family, entries in say.families(comparison["sources"]).items():
        rows = [
            [name, f"{entry['n']:,}", entry["metric"], *_texts(entry["metrics"][entry["metric"]])]
            for name, entry in entries.items()
        ]
        text += [f"## {family}", markdown_table(["source", "n", "metric", *_run_columns(comparison)], rows)]
    for name, entry in comparison["sources"].items():
        rows = [[metric, *_texts(figures)] for metric, figures in _all_metrics(entry)]
        text += [f"### {plain(name)}", plain(_about(entry))]
        text.append(markdown_table(["metric", *_run_columns(comparison)], rows))
    if comparison["not_in_all"]:
        left = comparison["not_in_all"].items()
        rows = [[name, ", ".join(of), ", ".join(_without(comparison, of))] for name, of in left]
        text += ["## Not compared", markdown_table(["source", "only in", "missing in"], rows)]
    return "\n\n".join(text) + "\n"


def console(comparison: Comparison) -> str:
    """Returns what `medtune compare` prints: the leading metric of each source, by family."""
    rows: list[Sequence[str]] = [("source", "n", "metric", *_run_columns(comparison))]
    for family, entries in say.families(comparison["sources"]).items():
        rows.append((family,))
        for name, entry in entries.items():
            figures = entry["metrics"][entry["metric"]]
            rows.append((f"  {name}", f"{entry['n']:,}", entry["metric"], *_texts(figures)))
    text = aligned(rows, left=(0, 2))
    for name, entry in comparison["sources"].items():
        text += [f"{name}: {said}" for said in (_left_out(entry), _crashes(entry)) if said]
    text += [
        f"not compared: {name}, missing in {', '.join(_without(comparison, of))}"
        for name, of in comparison["not_in_all"].items()
    ]
    return "\n".join([*text, _WORDS])


def page(comparison: Comparison) -> str:
    """Returns compare.html, a self-contained page."""
    runs = [
        parts.row(escape(run["name"]), parts.cell(str(run["model"]), "text wrap"), parts.cell(run["path"], "text wrap"))
        for run in comparison["runs"]
    ]
    protocol = comparison["protocol"]
    about = say.protocol_about(protocol)
    body = [
        f'<header><h1>Comparison</h1><div class="chips"><span class="chip">protocol {escape(protocol)}</span></div>'
        f'<p class="{"small" if protocol == "aligned" else "warning"}">{escape(about)}</p>'
        f"{parts.table('Runs', ['run', 'model', 'scores'], runs, 'plain', [1, 2])}"
        f'<p class="soft small">{escape(_WORDS)}</p></header>'
    ]
    for family, entries in say.families(comparison["sources"]).items():
        body.append(_family(family, entries, comparison))
    if comparison["not_in_all"]:
        names = [run["name"] for run in comparison["runs"]]
        rows = [
            parts.row(escape(name), *(parts.cell("yes" if run in of else "missing") for run in names))
            for name, of in comparison["not_in_all"].items()
        ]
        head = ["source", *names]
        body.append(
            "<section><h2>Not compared</h2><p>Sources that not all runs were scored on.</p>"
            f"{parts.table('Sources missing in a run', head, rows, 'plain')}</section>"
        )
    return parts.frame("Comparison", "\n".join(body))


def _family(family: str, entries: Mapping[str, Entry], comparison: Comparison) -> str:
    head = ["source", "metric", *_run_columns(comparison)]
    rows, drawn, details = [], [], []
    for name, entry in entries.items():
        metric = entry["metric"]
        said = [f"{entry['n']:,} rows, {entry['split'] or 'split unknown'}", *_stopped(entry)]
        heading = escape(name) + "".join(f'<span class="ci">{escape(one)}</span>' for one in said)
        rows.append(parts.row(heading, parts.cell(metric, "text"), *_cells(entry["metrics"][metric])))
        drawn += [
            Bar(name, figures["value"], figures["ci95"], run["name"])
            for run, figures in zip(comparison["runs"], entry["metrics"][metric], strict=True)
        ]
        of_metrics = [
            parts.row(escape(one), *_cells(figures), css="leading" if one == metric else "")
            for one, figures in _all_metrics(entry)
        ]
        table = parts.table(f"{name}: all metrics", ["metric", *_run_columns(comparison)], of_metrics, "plain")
        details.append(
            f'<details><summary>{escape(name)}: all metrics</summary><p class="soft">{escape(_about(entry))}</p>{table}'
            "</details>"
        )
    return (
        f"<section><h2>{escape(family)}</h2>{parts.table(f'{family}: one row per source', head, rows, 'plain', [1])}"
        f"{parts.bars(f'{family}, leading metrics', drawn)}{''.join(details)}</section>"
    )


def _run_columns(comparison: Comparison) -> list[str]:
    """Returns the headings of each run's value and, from the second run on, of its difference and p."""
    first, *others = (run["name"] for run in comparison["runs"])
    return [first, *(heading for name in others for heading in (name, "difference", "p"))]


def _texts(figures: Figures) -> list[str]:
    """Returns the cells of one metric under `_run_columns`, as text."""
    found = []
    for at, one in enumerate(figures):
        found.append(say.value_text(one["value"], one["ci95"]))
        if at:
            found += [f"{_signed(one['difference'])} {_signed_interval(one)}", f"{one['p']:.3f}"]
    return found


def _cells(figures: Figures) -> list[str]:
    """Returns the cells of one metric under `_run_columns`, as markup."""
    found = []
    for at, one in enumerate(figures):
        found.append(parts.figure(say.percent(one["value"]), [say.interval_text(one["ci95"])]))
        if at:
            found.append(parts.figure(_signed(one["difference"]), [_signed_interval(one)]))
            found.append(parts.cell(f"{one['p']:.3f}"))
    return found


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}"


def _signed_interval(figures: Mapping[str, Any]) -> str:
    low, high = figures["difference_ci95"]
    return f"[{_signed(low)}, {_signed(high)}]"


def _all_metrics(entry: Entry) -> list[tuple[str, Figures]]:
    """Returns (metric, figures of each run), the leading metric first, those over documents last."""
    found = [(metric, entry["metrics"][metric]) for metric in say.metric_names(entry)]
    if entry["documents"]:
        documents = {"metric": entry["metric"], **entry["documents"]}
        found += [(f"document_{metric}", documents["metrics"][metric]) for metric in say.metric_names(documents)]
    return found


def _about(entry: Entry) -> str:
    """Returns one sentence on which rows are compared and how they were resampled."""
    unit = f"{entry['groups']:,} groups" if entry["groups"] else "rows"
    documents = f", {entry['documents']['n']:,} documents" if entry["documents"] else ""
    rows = f"{entry['n']:,} rows{documents}, {say.split_text(entry)}"
    text = f"{rows}; resampled by {unit}; gold {entry['gold_sha256'][:12]}."
    return " ".join(part for part in (text, _left_out(entry), _crashes(entry)) if part)


def _left_out(entry: Entry) -> str:
    return f"Documents are not compared ({entry['documents_left_out']})." if entry["documents_left_out"] else ""


def _crashes(entry: Entry) -> str:
    stopped = ", ".join(f"{run} ({how})" for run, how in entry["crashes"].items())
    return f"The authors' script stops on: {stopped}." if stopped else ""


def _stopped(entry: Entry) -> list[str]:
    return [f"script stops on {', '.join(entry['crashes'])}"] if entry["crashes"] else []


def _without(comparison: Comparison, having: Sequence[str]) -> list[str]:
    return [run["name"] for run in comparison["runs"] if run["name"] not in having]

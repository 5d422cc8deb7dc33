"""timing.json: how long an evaluation took, and the work that was done in it, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medtune_jax.generate.core import Work


def timing(
    rows: int,
    decision: str,
    counts: Mapping[str, Counter[str]],
    check: Mapping[str, Any] | None,
    work: Work,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Returns what timing.json holds.

    Args:
      rows: asked, those answered by earlier attempts too; all else is of this attempt.
      decision: what the model chooses (`answer.decided`).
      counts: way -> sums over the rows answered in it; check: of template decoding, None where it was not asked
        for (evaluate/answer.py).
      work: of the engine, that of the check not counted.
      seconds: of "load", "generate", "check", "score" and the "wall".
    """
    total = sum(counts.values(), Counter())
    generating = seconds["generate"]
    return {
        "rows": rows,
        "rows_answered_now": total["rows"],
        **{f"{name}_seconds": round(value, 3) for name, value in seconds.items()},
        "rows_per_second": round(total["rows"] / generating, 3),
        "output_tokens": total["tokens"],
        "output_tokens_per_second": round(total["tokens"] / generating, 1),
        # What the model chose: under template decoding it is not every token that is written.
        "decision": decision,
        "decisions": total["decisions"],
        "decisions_per_second": round(total["decisions"] / generating, 1),
        "forward_passes_per_row": _per_row(total, "passes"),
        "ways": {way: _way(of_way) for way, of_way in sorted(counts.items())},
        "template_check": check,
        "work": {**asdict(work), "slot_use": round(work.slot_use, 4)},
    }


def told(timing: Mapping[str, Any]) -> str:
    """Returns the lines of the console."""
    lines = [
        f"{timing['rows_answered_now']:,} rows in {timing['generate_seconds']:,.1f} s: "
        f"{timing['rows_per_second']:,.2f} rows/s, {timing['decisions_per_second']:,.0f} {timing['decision']}s/s"
    ]
    for way, of_way in timing["ways"].items():
        line = f"{way}: {of_way['rows']:,} rows, {of_way['passes_per_row']:,.1f} forward passes and "
        line += f"{of_way['tokens_per_row']:,.1f} tokens a row"
        if of_way["drafted"]:
            line += f", {of_way['accepted'] / of_way['drafted']:.0%} of the drafted tokens kept"
        lines.append(line)
    work = timing["work"]
    if work["passes"]:
        lines.append(
            f"{work['passes']:,} passes of a batch, {work['slot_use']:.0%} of its slots in use; prompt tokens: "
            f"{work['prompt_tokens']:,} computed, {work['shared_tokens']:,} shared"
        )
    if check := timing["template_check"]:
        before = check["answered_before"]
        lines.append(
            f"template decoding beside token by token: {check['rows']} rows, {check['decisions']:,} decisions, "
            f"{len(check['differences'])} rows differ"
            + (f"; {before} more were answered before and cannot be compared" if before else "")
        )
        lines += [
            f"  row {one['row']}, decision {one['slot'] + 1}: {' instead of '.join(one['options'])}, whose logit is "
            f"{one['gap']:.3g} above the next"
            for one in check["differences"]
        ]
    return "\n".join(lines)


def _way(of_way: Counter[str]) -> dict[str, Any]:
    return {
        "rows": of_way["rows"],
        "tokens_per_row": _per_row(of_way, "tokens"),
        "decisions_per_row": _per_row(of_way, "decisions"),
        "passes_per_row": _per_row(of_way, "passes"),
        "drafted": of_way["drafted"],
        "accepted": of_way["accepted"],
    }


def _per_row(counts: Counter[str], name: str) -> float:
    return round(counts[name] / max(1, counts["rows"]), 3)

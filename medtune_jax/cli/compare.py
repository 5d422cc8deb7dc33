"""Puts two or more scored runs side by side, with paired bootstrap intervals of their differences from the first.

Runs whose gold rows differ are refused. With --out, compare.md, compare.html and compare.json are written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags as absl_flags

SUMMARY = "put scores side by side, with paired intervals"
MANY_VALUES = ("scores",)


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `medtune compare`."""
    absl_flags.DEFINE_multi_string(
        "scores", None, "scores.json files or their folders; the first is the base.", required=True, flag_values=flags
    )
    absl_flags.DEFINE_string("out", None, "Folder for compare.md, compare.html and compare.json.", flag_values=flags)


def run(flags: absl_flags.FlagValues) -> dict[str, Any]:
    """Compares and returns what compare.json holds."""
    from medtune_jax.evaluate.compare import compare
    from medtune_jax.evaluate.report.comparison import write_comparison

    comparison = compare(flags.scores)
    if flags.out:
        write_comparison(Path(flags.out), comparison)
    return comparison


def human(result: dict[str, Any]) -> str:
    """Returns the leading metric of each source, by family."""
    from medtune_jax.evaluate.report.comparison import console

    return console(result)

"""Scores a predictions file; no model is needed.

A line is a JSON object with at least `source`, `input`, `output` (gold) and `generated`. The training split of
--data is what the constant answer and the dictionary tagger are fitted on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from medtune_jax.errors import UserError

SUMMARY = "score existing predictions, no model needed"


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `medtune score`."""
    absl_flags.DEFINE_string("predictions", None, "predictions.jsonl, or its folder.", required=True, flag_values=flags)
    absl_flags.DEFINE_string("out", None, "Result folder; that of the predictions without it.", flag_values=flags)
    absl_flags.DEFINE_enum("protocol", "aligned", ["aligned"], "How texts are read and scored.", flag_values=flags)
    absl_flags.DEFINE_string("data", None, "Folder whose train split the baselines are fitted on.", flag_values=flags)


def run(flags: absl_flags.FlagValues) -> dict[str, Any]:
    """Scores and returns the summary of scores."""
    from medtune_jax.evaluate.score import score_file

    if flags.data and not Path(flags.data).is_dir():
        raise UserError(f"--data={flags.data} is not a folder of rows as `medtune prepare` writes it.")
    path = Path(flags.predictions)
    out = Path(flags.out) if flags.out else path if path.is_dir() else path.parent
    return score_file(path, out, protocol=flags.protocol, data=flags.data).summary(out)


def human(result: dict[str, Any]) -> str:
    """Returns the scores as a small table."""
    from medtune_jax.evaluate.report import console

    return console(result)

"""Tunes a Hugging Face checkpoint on prepared rows. On a folder that holds a run, goes on where it stopped: without
--config, with the configuration of that run, changed by what overrides say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from medtune_jax.config import Config
from medtune_jax.config_values import read_json
from medtune_jax.errors import UserError

SUMMARY = "tune a checkpoint on prepared rows; again on the same folder resumes"
TAKES_CONFIG = True


def define_flags(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "workdir",
        None,
        "Run folder: configuration, metrics, checkpoints. Made if absent.",
        required=True,
        flag_values=flags,
    )


def base_config(flags: Any) -> Config:
    """Returns the configuration of the run in --workdir, the defaults where there is none."""
    written = Path(flags.workdir) / "config.json"
    if not written.is_file():
        return Config()
    try:
        return read_json(written)
    except UserError as error:
        raise UserError(f"{error} Restore it, or give --config=NAME.") from None


def run(flags: Any, config: Config) -> dict[str, Any]:
    """Returns train/loop.py's Result as a dict, with the run folder."""
    from medtune_jax.train.loop import train

    return {"workdir": flags.workdir, **dataclasses.asdict(train(config, flags.workdir))}


def human(result: dict[str, Any]) -> str:
    """Returns what is printed without --json."""
    losses = [
        f"{name} {result[key]:.4f}"
        for name, key in (("loss", "loss"), ("evaluation loss", "eval_loss"))
        if result[key] is not None
    ]
    return (
        f"{result['steps']:,} steps in {result['seconds']:,.0f} s: {', '.join(losses)}; "
        f"{result['tokens_per_second']:,.0f} tokens/s, peak memory {result['peak_memory_bytes'] / 1e6:,.0f} MB.\n"
        f"Checkpoint: {result['checkpoint']}"
    )

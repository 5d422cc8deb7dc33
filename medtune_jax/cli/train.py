"""Tunes a Hugging Face checkpoint on prepared rows. On a folder that holds a run, goes on where it stopped: without
--config and overrides, with the configuration of that run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from medtune_jax.config import Config, from_dict

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


def run(flags: Any, config: Config) -> dict[str, Any]:
    """Returns train/loop.py's Result as a dict, with the run folder."""
    from medtune_jax.train.loop import train

    workdir = Path(flags.workdir)
    written = workdir / "config.json"
    if config == Config() and written.is_file():
        config = from_dict(json.loads(written.read_text(encoding="utf-8")))
    return {"workdir": str(workdir), **dataclasses.asdict(train(config, workdir))}


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

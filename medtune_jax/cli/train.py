"""Tunes a Hugging Face checkpoint on prepared rows. On a folder that holds a run, goes on where it stopped: without
--config, with the configuration of that run, changed by what overrides say.

On several machines the same command runs on each, with --workdir on storage that all share:
  SLURM       srun medtune train ...              one task per node, which then has all its GPUs, or one per GPU
  TPU VM      gcloud compute tpus tpu-vm ssh NAME --worker=all --command='medtune train ...'
  Kubernetes  an indexed Job or JobSet whose pods name a headless service, and `pip install jax[k8s]` (without these
              each pod is a run of its own, or give the flags below); on GKE with TPUs no more is needed
  Open MPI    mpirun medtune train ...            up to version 4; from 5 on give the flags below
  otherwise   medtune train ... --coordinator=HOST:PORT --num_processes=N --process_id=I    (I = 0 runs on HOST)
All must have the same program, settings, weights and rows, which is checked.
SIGTERM to any process stops all after the same step with the state saved. A process that dies ends the others, within
--process_timeout seconds. Both exit with 75: start all of them again to go on.

On GPUs it takes 95% of their memory at once (JAX alone would take 75%); XLA_CLIENT_MEM_FRACTION sets another share."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from medtune_jax.cli.several import define_process_flags, joined_as
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
    define_process_flags(flags)


def base_config(flags: Any) -> Config:
    """Returns the configuration of the run in --workdir, the defaults where there is none."""
    written = Path(flags.workdir) / "config.json"
    if not written.is_file():
        return Config()
    try:
        return read_json(written)
    except UserError as error:
        raise UserError(f"{error} Restore it, or give --config=NAME.") from None


def run(flags: Any, config: Config) -> dict[str, Any] | None:
    """Returns train/loop.py's Result as a dict, with the run folder; None in a process that does not speak."""
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # its older name: XLA refuses both
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.95")  # before jax is imported
    from medtune_jax.processes import is_first
    from medtune_jax.train.loop import train

    with joined_as("medtune train", flags):
        result = train(config, flags.workdir)
        speaks = is_first()
    return {"workdir": flags.workdir, **dataclasses.asdict(result)} if speaks else None


def human(result: dict[str, Any]) -> str:
    """Returns what is printed without --json."""
    losses = [
        f"{name} {result[key]:.4f}"
        for name, key in (("loss", "loss"), ("evaluation loss", "eval_loss"))
        if result[key] is not None
    ]
    mfu = "" if result["mfu"] is None else f", MFU {result['mfu']:.1%}"
    return (
        f"{result['steps']:,} steps in {result['seconds']:,.0f} s: {', '.join(losses)}; "
        f"{result['tokens_per_second']:,.0f} tokens/s{mfu}, goodput {result['goodput']:.0%}, peak memory "
        f"{result['peak_memory_bytes'] / 1e6:,.0f} MB.\n"
        f"Checkpoint: {result['checkpoint']}"
    ) + (
        f"\nBest by {best['metric']} on '{best['split']}', {best['value']:.4f} after step {best['step']:,}: "
        f"{result['workdir']}/best, a model as this run is"
        if (best := result["best"])
        else ""
    )

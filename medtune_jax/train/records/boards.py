"""Where numbers go besides metrics.jsonl: TensorBoard, Weights & Biases. They are given scalars and never text."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from medtune_jax.config import Config, LogConfig
from medtune_jax.config_values import to_dict
from medtune_jax.errors import UserError
from medtune_jax.processes import is_first

_log = logging.getLogger(__name__)


class Board(Protocol):
    """Takes scalars by name, as of a step."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check_boards(config: LogConfig) -> None:
    """Raises UserError where a board is asked for whose package is absent: before anything is loaded."""
    for wanted, package, leaf, off in (
        (config.tensorboard, "tensorboardX", "log.tensorboard", "false"),
        (config.wandb, "wandb", "log.wandb", ""),
    ):
        if wanted and importlib.util.find_spec(package) is None:
            raise UserError(
                f"{leaf} is set, but the package {package} is not installed: pip install {package}, or give "
                f"--config.{leaf}={off}."
            )


def open_boards(config: Config, workdir: Path, step: int) -> list[Board]:
    """Returns the boards that `config` asks for, for a run that has done `step` updates; the first process has them."""
    boards: list[Board] = []
    if not is_first():
        return boards
    if config.log.tensorboard:
        boards.append(TensorBoard(workdir / "tensorboard", step))
    if config.log.wandb:
        boards.append(Wandb(config, workdir))
    return boards


class TensorBoard:
    """Event files in a folder; what an interrupted run wrote there after `step` is hidden."""

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; a resumed run goes on in the same one.

    Only the configuration and scalars leave the machine: what wandb would gather by itself (console output, code, the
    git state, installed packages, the machine) is turned off. Without a network or a key it writes offline, into
    <workdir>/wandb, for `wandb sync`; an error later on is told once and does not end the run.
    """

    def __init__(self, config: Config, workdir: Path):
        import wandb

        told: dict[str, Any] = {
            "project": config.log.wandb,
            "name": workdir.name,
            "id": hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16],
            "resume": "allow",
            "dir": str(workdir),
            "config": to_dict(config),
            "settings": wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        }
        try:
            self._run = wandb.init(**told)
        except Exception as error:  # wandb raises many kinds for a missing key, a refused login, no network
            _log.warning("wandb could not go online (%s): it writes to %s, for `wandb sync`.", error, workdir / "wandb")
            self._run = wandb.init(**told, mode="offline")
        self._failed = False

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._try(lambda: self._run.log({**scalars, "step": step}))

    def close(self) -> None:
        self._try(self._run.finish)

    def _try(self, call: Any) -> None:
        try:
            call()
        except Exception as error:  # numbers on a board are not worth a run
            if not self._failed:
                _log.warning("wandb failed, training goes on: %s", error)
            self._failed = True

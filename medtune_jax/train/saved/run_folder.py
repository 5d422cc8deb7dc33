"""What lies in a run folder beside metrics and checkpoints: configuration, and the tuned model's own description."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

from medtune_jax.config import Config
from medtune_jax.config_values import to_dict
from medtune_jax.convert.origin import ORIGIN_FILE, origin_json
from medtune_jax.errors import UserError
from medtune_jax.processes import barrier, is_first
from medtune_jax.tasks.rows import credentialed_in
from medtune_jax.train.inputs import Inputs


def write_run_folder(workdir: Path, config: Config, inputs: Inputs) -> None:
    """Writes config.json, and model/: the tuned model's own config.json, tokenizer files and origin.json.

    Of several processes the first writes, and all return when it has. Weights tuned on gated text can repeat it, and
    samples quote it where it is held out, so the folder is then closed to others.

    Raises:
      UserError: the folder cannot be written.
    """
    if not is_first():
        barrier("run folder")
        return
    try:
        if inputs.origin.credentialed or credentialed_in(inputs.held_out.rows):
            workdir.mkdir(mode=0o700, parents=True, exist_ok=True)  # closed before anything lies in it
            workdir.chmod(0o700)  # also one that was there
        workdir.mkdir(parents=True, exist_ok=True)
        write_whole(workdir / "config.json", json.dumps(to_dict(config), indent=2) + "\n")
        describe_model(workdir / "model", inputs)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(f"The run folder {workdir} cannot be written: {error.strerror}.") from error
    barrier("run folder")


def describe_model(folder: Path, inputs: Inputs) -> None:
    """Writes what makes parameters a model: its config.json, tokenizer files and origin.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.json", json.dumps(inputs.identity.model, indent=2) + "\n")
    write_whole(folder / ORIGIN_FILE, json.dumps(origin_json(inputs.origin), indent=2) + "\n")
    inputs.tokenizer.copy_to(folder)


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all, also after a loss of power."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

"""What several processes must have in common, checked before the first update: inputs, program, and the run folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import medtune_jax
from medtune_jax.config import Config
from medtune_jax.config_values import get, leaves
from medtune_jax.errors import UserError
from medtune_jax.processes import everyones, is_first

_SEEN_WITHIN = 10.0  # seconds; a client of NFS may keep what it knows of a folder for a while
_EDGE = 1 << 20  # bytes
# Each machine may have its own copy of what lies there: the content is compared.
_PLACES = ("model.path", "model.lora.path", "data.path", "data.cache_dir")


def require_same(parts: Mapping[str, Any]) -> None:
    """Compares what each process holds: part -> JSON value. To be called by all.

    Raises:
      UserError: naming the processes that hold another value than the first, and the parts.
    """
    own = {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest() for name, value in parts.items()
    }
    everyone = everyones("inputs", own)
    others = {i: [name for name in own if theirs.get(name) != everyone[0][name]] for i, theirs in enumerate(everyone)}
    told = "; ".join(f"process {i} has another {', '.join(names)}" for i, names in others.items() if names)
    if told:
        raise UserError(
            f"The {len(everyone)} processes (counted from 0) do not hold the same as the first: {told}. Give all the "
            "same command, program and files."
        )


def settings_and_program(config: Config) -> dict[str, Any]:
    """Returns the parts that are known before anything is read: each field but the places of files, and versions."""
    fields = {path: get(config, path) for path, _, _ in leaves() if path not in _PLACES}
    return {**fields, "version of medtune_jax": medtune_jax.__version__, "version of jax": jax.__version__}


def program_and_weights(model: Path) -> dict[str, Any]:
    """Returns the parts that processes which ask one model have in common beside their questions and settings.

    model: its folder, of which each machine may have its own copy.
    """
    versions = {"version of medtune_jax": medtune_jax.__version__, "version of jax": jax.__version__}
    return {**versions, "weights": edges_of_weights(model)}


def edges_of_weights(folder: Path) -> list[tuple[str, int, str]]:
    """Returns name, bytes, and a SHA-256 of the first and last MiB of each file of weights.

    The identity of a run is no help here: each process hashes its share of the tensors, and all get the same whole.
    """
    told = []
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(_EDGE)
            file.seek(max(0, size - _EDGE))
            told.append((path.name, size, hashlib.sha256(first + file.read(_EDGE)).hexdigest()))
    return told


def refuse_unshared(workdir: Path) -> None:
    """Raises UserError where a process does not see what the first writes in `workdir`, which that one made."""
    if jax.process_count() == 1:
        return
    # A name never asked for before: that a file is not there is remembered too.
    path = workdir / f".seen-{everyones('name', secrets.token_hex(8))[0]}"
    if is_first():
        path.touch()
    try:
        everyones("written", True)
        unseen = [str(i) for i, sees in enumerate(everyones("seen", _appears(path))) if not sees]
    finally:
        if is_first():
            path.unlink(missing_ok=True)
    if unseen:
        raise UserError(
            f"--workdir={workdir} is not shared by all processes: process {', '.join(unseen)} does not see what "
            "process 0 wrote there. Give a folder on a file system that all machines mount."
        )


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + _SEEN_WITHIN
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(path.parent.parent)  # to open a folder is what makes a client of NFS ask anew
            os.listdir(path.parent)
    return True

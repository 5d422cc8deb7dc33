"""Checkpoints on disk: the one place that talks to Orbax.

checkpoints/<step>/ holds `params` and `optimizer` (sharded arrays) and `meta` (JSON: format version, step, the resolved
configuration, the identity of what the run was made from, a checksum of each of the other two). A checkpoint appears
under its name only when it is complete. Saving is asynchronous: a call returns when the state has been copied and may
be donated.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from medtune_jax.config import Config
from medtune_jax.config_values import changed_math, from_dict, to_dict
from medtune_jax.errors import UserError
from medtune_jax.model.llama import Params
from medtune_jax.train.state import TrainState

FORMAT = 1
_TEMPORARY = "*.orbax-checkpoint-tmp*"
_NOT_ITS_FAULT = (UserError, MemoryError, PermissionError, jax.errors.JaxRuntimeError)  # the checkpoint may be whole
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run is made from; another value of any field is another run.

    Attributes:
      base_weights, tokenizer, template, data: SHA-256 (data: the encoded rows and the plan of batches).
      model: the architecture as a config.json dict.
    """

    base_weights: str
    tokenizer: str
    template: str
    data: str
    model: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run folder. Use as a context manager: leaving it waits for the write under way."""

    def __init__(self, folder: Path, keep: int | None = None):
        """Keeps the newest `keep` checkpoints of `folder` (None = all); touches nothing before `restore` or `save`."""
        self.folder = folder
        self._options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._opened: ocp.CheckpointManager | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        if self._opened is not None:
            self._opened.close()

    @property
    def _manager(self) -> ocp.CheckpointManager:
        """Orbax's own; it makes the folder, so it is opened only when there is something to read or write."""
        if self._opened is None:
            names = ("params", "optimizer", "meta")
            self._opened = ocp.CheckpointManager(self.folder.absolute(), options=self._options, item_names=names)
        return self._opened

    def steps(self) -> list[int]:
        """Returns the steps that are on disk, ascending."""
        return sorted(self._manager.all_steps()) if self.folder.is_dir() else []

    def save(self, step: int, state: TrainState, config: Config, identity: Identity) -> None:
        """Begins to write checkpoint `step`, after the one before it is on disk (its errors are raised here)."""
        optimizer = {"step": state.step, "state": state.opt_state, "guard": state.guard}
        items = {"params": state.params, "optimizer": optimizer}
        meta = {
            "format": FORMAT,
            "step": step,
            "config": to_dict(config),
            "identity": dataclasses.asdict(identity),
            "checksums": {name: int(checksum(item)) for name, item in items.items()},
        }
        arrays = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        self.wait()  # Orbax would skip this save while another is under way
        saved = self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **arrays))
        if not saved:
            raise RuntimeError(f"Orbax skipped checkpoint {step} in {self.folder}")

    def wait(self) -> None:
        """Returns when everything is on disk; raises what went wrong."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def restore(self, abstract: TrainState, config: Config, identity: Identity) -> TrainState | None:
        """Returns the newest readable state, laid out as `abstract` says (any mesh); None where there is none.

        What an interrupted write left behind is removed. Unreadable checkpoints newer than the one returned are set
        aside, with a warning, in `unreadable/` beside this folder.

        Raises:
          UserError: checkpoints exist but none is readable, or the newest readable one is of another run: format
            version, math field of the configuration, weights, tokenizer, template or data, each by name.
        """
        _remove_temporary(self.folder)
        unreadable: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            try:
                meta = self._read_meta(step)
                self._refuse_others(step, meta, config, identity)
                params = self._read(step, "params", abstract.params, meta)
                optimizer = {"step": abstract.step, "state": abstract.opt_state, "guard": abstract.guard}
                found = self._read(step, "optimizer", optimizer, meta)
            except _NOT_ITS_FAULT:
                raise
            except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
                unreadable.append((step, _reason(error)))
                continue
            self._set_aside(unreadable)
            return TrainState(found["step"], params, found["state"], found["guard"])
        if unreadable:
            told = "; ".join(f"{step}: {reason}" for step, reason in unreadable)
            raise UserError(f"No checkpoint in {self.folder} is readable ({told}). Start again in another --workdir.")
        return None

    def read_params(self, abstract: Params) -> tuple[Params, dict[str, Any]]:
        """Returns the newest parameters, laid out and typed as `abstract` says, and what the checkpoint says of itself.

        Raises:
          UserError: there is no checkpoint, or the newest is unreadable or of another format version.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.folder} holds no checkpoint yet: train until the first one is saved.")
        try:
            meta = self._read_meta(steps[-1])
            return self._read(steps[-1], "params", abstract, meta), meta
        except _NOT_ITS_FAULT:
            raise
        except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
            raise UserError(
                f"Checkpoint {self.folder / str(steps[-1])} is unreadable: {_reason(error)}. "
                "`medtune train` on this run goes on from the one before."
            ) from error

    def _read_meta(self, step: int) -> dict[str, Any]:
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        if meta["format"] != FORMAT:
            raise UserError(
                f"Checkpoint {self.folder / str(step)} has format version {meta['format']}; this program reads "
                f"{FORMAT}. Use the version of medtune_jax that wrote it."
            )
        return meta

    def _read(self, step: int, name: str, abstract: Any, meta: dict[str, Any]) -> Any:
        """Restores an item as it was stored, checks its bits, and only then casts it to the dtypes of `abstract`."""
        stored = abstract
        if name == "params":  # float32 in every precision policy
            stored = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), abstract)
        item = self._manager.restore(step, args=ocp.args.Composite(**{name: ocp.args.StandardRestore(stored)}))[name]
        if int(checksum(item)) != meta["checksums"][name]:
            raise ValueError(f"the checksum of its {name} is wrong")
        leaves, tree = jax.tree.flatten(item)
        del item
        for index, wanted in enumerate(jax.tree.leaves(abstract)):  # leaf by leaf: never two whole copies
            leaves[index] = leaves[index].astype(wanted.dtype)
        return jax.tree.unflatten(tree, leaves)

    def _refuse_others(self, step: int, meta: dict[str, Any], config: Config, identity: Identity) -> None:
        where = f"Cannot resume {self.folder / str(step)}"
        mend = "Train in another --workdir, or restore what changed."
        changed = changed_math(from_dict(meta["config"]), config)
        if changed:
            raise UserError(f"{where}: the configuration changed what is computed ({'; '.join(changed)}). {mend}")
        for name, before in meta["identity"].items():
            now = getattr(identity, name)
            if before != now:
                told = "" if isinstance(before, dict) else f" (SHA-256 {before[:12]} -> {now[:12]})"
                raise UserError(f"{where}: it was made with other {_SPOKEN[name]}{told}. {mend}")

    def _set_aside(self, unreadable: list[tuple[int, str]]) -> None:
        aside = self.folder.parent / "unreadable"
        for step, reason in unreadable:
            _log.warning("Checkpoint %s is unreadable, hence moved to %s: %s", self.folder / str(step), aside, reason)
            if jax.process_index() == 0:
                aside.mkdir(exist_ok=True)
                shutil.rmtree(aside / str(step), ignore_errors=True)
                (self.folder / str(step)).rename(aside / str(step))
        if unreadable:
            self._manager.reload()


@contextmanager
def full_disk_named(workdir: Path) -> Iterator[None]:
    """Turns "no space left", whatever met it, into a UserError naming `workdir`; removes half-written checkpoints."""
    try:
        yield
    except Exception as error:
        if not _disk_is_full(error):
            raise
        _remove_temporary(workdir / "checkpoints")
        raise UserError(
            f"The disk is full: {workdir} could not be written to. The checkpoints there are whole: make room, or "
            "lower --config.checkpoint.keep, and run the same command to go on."
        ) from error


def _remove_temporary(folder: Path) -> None:
    if jax.process_index() == 0:
        for leftover in folder.glob(_TEMPORARY):
            shutil.rmtree(leftover, ignore_errors=True)


@jax.jit
def checksum(tree: Any) -> jax.Array:
    """Returns a uint32 that depends on every bit of every leaf and its place, and not on how they are sharded."""
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
        place = jnp.zeros(leaf.shape, jnp.uint32)
        for axis, size in enumerate(leaf.shape):
            place = place * size + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        # odd multipliers lose no bit; integer sums do not depend on their order
        total = total * jnp.uint32(0x9E3779B1) + jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
    return total


_SPOKEN = {
    "base_weights": "base weights (model.path)",
    "tokenizer": "tokenizer (model.path)",
    "template": "wording of the template (data.template)",
    "data": "rows, or another plan of batches (data.path)",
    "model": "architecture (config.json)",
}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False

"""Checkpoints on disk: the one place that talks to Orbax.

checkpoints/<step>/ holds `params` and `optimizer` (sharded arrays) and `meta` (JSON, formats.py: format version, step,
the resolved configuration, the identity of what the run was made from, a checksum of each of the other two). A
checkpoint appears under its name only when it is complete. Saving is asynchronous: a call returns when the state has
been copied and may be donated.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from medtune_jax.config import Config
from medtune_jax.errors import UserError
from medtune_jax.model.llama import Params
from medtune_jax.processes import everyones
from medtune_jax.train.guard import init_guard
from medtune_jax.train.saved.checksum import checksum, leaf_part, of_parts
from medtune_jax.train.saved.formats import Identity, Meta, items, make_meta, refuse_another_run, upgraded
from medtune_jax.train.state import TrainState, shardings

_TEMPORARY = "*.orbax-checkpoint-tmp*"
_NOT_ITS_FAULT = (UserError, MemoryError, PermissionError, jax.errors.JaxRuntimeError)  # the checkpoint may be whole
_WRITTEN_WITHIN = 4 * 3600  # seconds; a slow shared disk takes its time for the state of a large model
_ATTEMPTS = 2  # what cannot be read twice is damaged; a file system may fail once
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Unreadable(Exception):
    """A checkpoint is damaged; the text says how."""


class Checkpoints:
    """The checkpoints of one run folder. Use as a context manager: leaving it waits for the write under way."""

    def __init__(self, folder: Path, keep: int | None = None):
        """Keeps the newest `keep` checkpoints of `folder` (None = all); touches nothing before `restore` or `save`."""
        self.folder = folder
        async_options = ocp.AsyncOptions(timeout_secs=_WRITTEN_WITHIN)
        self._options = ocp.CheckpointManagerOptions(max_to_keep=keep, async_options=async_options)
        self._opened: ocp.CheckpointManager | None = None
        self._writes = False

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._opened is not None:
                self._opened.close()
        finally:
            if kind is not None and self._writes:  # what was half-written takes room from what is to follow
                _remove_temporary(self.folder)

    @property
    def _manager(self) -> ocp.CheckpointManager:
        """Orbax's own; it makes the folder, so it is opened only when there is something to read or write."""
        if self._opened is None:
            names = ("params", "optimizer", "meta")
            self._opened = ocp.CheckpointManager(self.folder.absolute(), options=self._options, item_names=names)
        return self._opened

    def steps(self) -> list[int]:
        """Returns the steps that are on disk, readable or not, ascending."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file; it should be the folder of checkpoints. Move it away.")
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdecimal())

    def save(self, step: int, state: TrainState, config: Config, identity: Identity) -> None:
        """Begins to write checkpoint `step`, after the one before it is on disk (its errors are raised here)."""
        self._save(step, items(state), config, identity, force=False)

    def save_params(self, step: int, params: Params, config: Config, identity: Identity) -> None:
        """Begins to write what is trained alone, in place of what `step` was; it may be below the newest step.

        Such a checkpoint is to be read, not to go on from.
        """
        self.wait()
        if jax.process_index() == 0:
            _remove(self.folder / str(step))
        multihost_utils.sync_global_devices("there is room for the parameters")
        self._manager.reload()
        self._save(step, {"params": params}, config, identity, force=True)

    def keep_only(self, step: int) -> None:
        """Removes all checkpoints but `step`, and what an interrupted write left behind; not while one is written."""
        _remove_temporary(self.folder)
        if jax.process_index() == 0:
            for other in set(self.steps()) - {step}:
                _remove(self.folder / str(other))
        if self._opened is not None:
            self._opened.reload()

    def _save(self, step: int, arrays: dict[str, Any], config: Config, identity: Identity, *, force: bool) -> None:
        """force: also a step below the newest, which Orbax would skip."""
        if not self.folder.parent.is_dir():  # Orbax would make it anew, and nothing else would be in it
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder.parent))
        self._writes = True
        meta = make_meta(step, config, identity, {name: checksum(item) for name, item in arrays.items()})
        saves = {name: ocp.args.StandardSave(item) for name, item in arrays.items()}
        self.wait()  # Orbax would skip this save while another is under way
        saved = self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **saves), force=force)
        if not saved:
            raise RuntimeError(f"Orbax skipped checkpoint {step} in {self.folder}")

    def wait(self) -> None:
        """Returns when everything is on disk; raises what went wrong."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def restore(self, abstract: TrainState, config: Config, identity: Identity) -> TrainState | None:
        """Returns the newest readable state, laid out as `abstract` says (any mesh); None where there is none.

        What an interrupted write left behind is removed. Unreadable checkpoints newer than the one returned are set
        aside, with a warning, in `unreadable/` beside this folder. Of several processes, what one cannot read none
        reads.

        Raises:
          UserError: checkpoints exist but none is readable, or the newest readable one is of another run: format
            version, math field of the configuration, weights, tokenizer, template or data, each by name.
        """
        _remove_temporary(self.folder)
        unreadable: list[tuple[int, str]] = []
        # The first lists for all: another may see the folder as it was a while ago.
        for step in reversed(everyones("checkpoints", self.steps())[0]):
            try:
                meta = self._read_meta(step)
                refuse_another_run(meta, config, identity, self.folder / str(step))
                wanted = items(abstract, meta["format"])
                found = {name: self._read_item(step, name, item, meta) for name, item in wanted.items()}
            except Unreadable as error:
                unreadable.append((step, str(error)))
                continue
            self._set_aside(unreadable)
            optimizer = found["optimizer"]
            guard = optimizer.get("guard")
            if guard is None:
                guard = jax.device_put(init_guard(), shardings(abstract.guard))
            return TrainState(optimizer["step"], found["params"], optimizer["state"], guard)
        if unreadable:
            told = "; ".join(f"{step}: {reason}" for step, reason in unreadable)
            raise UserError(f"No checkpoint in {self.folder} is readable ({told}). Start again in another --workdir.")
        return None

    def read_params(self, abstract: Callable[[Meta], Params]) -> tuple[Params, Meta]:
        """Returns the newest parameters, laid out and typed as `abstract` says, and what the checkpoint says of itself.

        abstract: from what the checkpoint says of itself to the ShapeDtypeStructs of its parameters.

        Raises:
          UserError: there is no checkpoint, or the newest is unreadable or of another format version.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.folder} holds no checkpoint yet: train until the first one is saved.")
        try:
            meta = self._read_meta(steps[-1])
            return self._read_item(steps[-1], "params", abstract(meta), meta), meta
        except Unreadable as error:
            raise UserError(
                f"Checkpoint {self.folder / str(steps[-1])} is unreadable: {error}. "
                "`medtune train` on this run goes on from the one before."
            ) from error

    def _read_meta(self, step: int) -> Meta:
        where = self.folder / str(step)

        def read() -> Meta:
            if not where.is_dir():
                raise ValueError("it is a file, not a folder")
            return upgraded(restore_item(where / "meta", ocp.args.JsonRestore()), where)

        return _readable(read)

    def _read_item(self, step: int, name: str, abstract: Any, meta: Meta) -> Any:
        """Restores an item as it was stored, checks its bits, and casts it to the dtypes of `abstract`.

        What is to be cast is read leaf by leaf: beside what is wanted, one leaf is in memory as it was stored.
        """
        where = self.folder / str(step) / name
        leaves, tree = jax.tree.flatten(abstract)
        if name != "params" or all(leaf.dtype == jnp.float32 for leaf in leaves):
            item = _readable(lambda: restore_item(where, ocp.args.StandardRestore(abstract)))
            found = checksum(item)
        else:  # stored in float32 by every precision policy
            parts = []
            for index, wanted in enumerate(leaves):
                only: list[Any] = [ocp.PLACEHOLDER] * len(leaves)
                only[index] = jax.ShapeDtypeStruct(wanted.shape, jnp.float32, sharding=wanted.sharding)
                leaf = _readable(partial(_restore_leaf, where, jax.tree.unflatten(tree, only), index))
                parts.append(leaf_part(leaf))
                leaves[index] = leaf.astype(wanted.dtype)
            item, found = jax.tree.unflatten(tree, leaves), of_parts(parts)
        if found != meta["checksums"][name]:  # the same on every process
            raise Unreadable(f"the checksum of its {name} is wrong")
        return item

    def _set_aside(self, unreadable: list[tuple[int, str]]) -> None:
        aside = self.folder.parent / "unreadable"
        for step, reason in unreadable:
            _log.warning("Checkpoint %s is unreadable, hence moved to %s: %s", self.folder / str(step), aside, reason)
            if jax.process_index() == 0:
                aside.mkdir(exist_ok=True)
                _remove(aside / str(step))
                (self.folder / str(step)).rename(aside / str(step))
        if unreadable:
            multihost_utils.sync_global_devices("unreadable checkpoints are set aside")
            self._manager.reload()


def restore_item(folder: Path, arguments: ocp.args.CheckpointArgs) -> Any:
    """Reads one item of a checkpoint.

    By its handler: CheckpointManager ends with a barrier, which a process that fails to read never reaches.
    """
    handler: Any = ocp.StandardCheckpointHandler
    if isinstance(arguments, ocp.args.JsonRestore):
        handler = ocp.JsonCheckpointHandler
    elif isinstance(arguments, ocp.args.PyTreeRestore):
        handler = ocp.PyTreeCheckpointHandler
    return handler().restore(epath.Path(folder.absolute()), args=arguments)


def _restore_leaf(folder: Path, only: Any, index: int) -> jax.Array:
    """Reads the leaf of an item at whose place `only` says its shape; at those of the others stands PLACEHOLDER."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(only)
    return jax.tree.leaves(restore_item(folder, ocp.args.PyTreeRestore(only, restore_args=restore_args)))[index]


def _readable(read: Callable[[], T]) -> T:
    """Returns read(); where it fails on any process, raises on all: Unreadable unless the checkpoint may be whole."""
    for _ in range(_ATTEMPTS):
        failure: Exception | None = None
        result = None
        try:
            result = read()
        except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
            failure = error
        failed = failure is not None
        if jax.process_count() > 1:
            failed = bool(multihost_utils.process_allgather(np.asarray(failed)).any())
        if not failed:
            return result  # type: ignore[return-value]
        if isinstance(failure, _NOT_ITS_FAULT):
            raise failure
    raise Unreadable(_reason(failure) if failure else "another process could not read its part") from failure


def _remove_temporary(folder: Path) -> None:
    if jax.process_index() == 0:
        for leftover in folder.glob(_TEMPORARY):
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

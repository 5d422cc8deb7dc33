"""What a checkpoint says of itself, `meta`, through the versions of its form; and whether a run may go on from it.

Version 1 (issue 2): the configuration has no inner groups; item `optimizer` holds `step` and `state`.
Version 2: the configuration has `model.lora`, `train.bad_step`, ...; `optimizer` holds `guard` too (train/guard.py);
`program` is the version of medtune_jax that wrote it, `jax` that of jax; `model.attention` is the backend that ran.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax

import medtune_jax
from medtune_jax.config import Config
from medtune_jax.config_values import changed_math, from_dict, to_dict
from medtune_jax.errors import UserError
from medtune_jax.train.state import TrainState

FORMAT = 2
Meta = dict[str, Any]
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run is made from; another value of any field is another run.

    Attributes:
      base_weights, tokenizer, template, data: SHA-256 (data: the encoded rows and the plan of batches).
      adapter: SHA-256 of the adapter that training started from, "" where from none.
      model: the architecture as a config.json dict.
    """

    base_weights: str
    tokenizer: str
    template: str
    data: str
    model: dict[str, Any]
    adapter: str = ""


_SPOKEN = {
    "base_weights": "base weights (model.path)",
    "tokenizer": "tokenizer (model.path)",
    "template": "wording of the template (data.template)",
    "data": "rows, or another plan of batches (data.path)",
    "model": "architecture (config.json)",
    "adapter": "adapter to start from (model.lora.path)",
}


def items(state: TrainState, version: int = FORMAT) -> dict[str, Any]:
    """Returns the items of arrays (or of their ShapeDtypeStructs) that a checkpoint of `version` holds."""
    optimizer = {"step": state.step, "state": state.opt_state}
    if version >= 2:
        optimizer["guard"] = state.guard
    return {"params": state.params, "optimizer": optimizer}


def make_meta(step: int, config: Config, identity: Identity, checksums: dict[str, int]) -> Meta:
    """Returns what checkpoint `step` says of itself, as JSON values."""
    return {
        "format": FORMAT,
        "program": medtune_jax.__version__,
        "jax": jax.__version__,
        "step": step,
        "config": to_dict(config),
        "identity": dataclasses.asdict(identity),
        "checksums": checksums,
    }


def upgraded(meta: Meta, where: Path) -> Meta:
    """Returns `meta`, of any version known, with the configuration of this version; `format` stays what is on disk.

    Raises:
      UserError: its version is not known, or its configuration holds what this version does not know.
      ValueError: it is no meta at all.
    """
    if not isinstance(meta, dict) or not {"format", "config", "identity", "checksums"} <= meta.keys():
        raise ValueError("its meta lacks what every checkpoint says of itself")
    version, writer = meta["format"], meta.get("program")
    wrote = f"medtune_jax {writer}" if writer else "another version of medtune_jax"
    if not isinstance(version, int) or not 1 <= version <= FORMAT:
        raise UserError(
            f"Checkpoint {where} has format version {version}, written by {wrote}; this program, "
            f"{medtune_jax.__version__}, reads 1 to {FORMAT}. Use the version that wrote it."
        )
    config = meta["config"]
    for older in range(version, FORMAT):
        config = _UPGRADES[older](config)
    try:
        from_dict(config)
    except UserError as error:
        raise UserError(
            f"Checkpoint {where} (format version {version}, written by {wrote}) was made with a configuration that "
            f"medtune_jax {medtune_jax.__version__} does not know: {error} Use the version that wrote it."
        ) from None
    return {**meta, "config": config, "identity": {"adapter": "", **meta["identity"]}}


def refuse_another_run(meta: Meta, config: Config, identity: Identity, where: Path) -> None:
    """Raises UserError, with each difference by name, where a run of `config` may not go on from this checkpoint.

    Warns where it may and another program computes the same, so that the bits may differ from an undisturbed run's.
    """
    told = f"Cannot resume {where}"
    mend = "Train in another --workdir, or restore what changed."
    changed = changed_math(from_dict(meta["config"]), config)
    if changed:
        raise UserError(f"{told}: the configuration changed what is computed ({'; '.join(changed)}). {mend}")
    before, now = meta["identity"], dataclasses.asdict(identity)
    if before.keys() != now.keys():
        names = ", ".join(sorted(before.keys() ^ now.keys()))
        raise UserError(f"{told}: its identity and that of this version of medtune_jax differ in form ({names}).")
    for name, spoken in _SPOKEN.items():
        if before[name] != now[name]:
            hashes = "" if name == "model" else f" (SHA-256 {before[name][:12]} -> {now[name][:12]})"
            raise UserError(f"{told}: it was made with other {spoken}{hashes}. {mend}")
    for what, was, is_now in (
        ("model.attention", meta["config"]["model"]["attention"], config.model.attention),
        ("jax", meta.get("jax"), jax.__version__),
    ):
        if was not in (None, "auto", is_now):
            _log.warning(
                "%s was %s where %s was written and is %s now: the same is computed, but from here on the last bits "
                "may differ from those of a run that was never stopped.",
                what,
                was,
                where,
                is_now,
            )


def _from_1(config: dict[str, Any]) -> dict[str, Any]:
    """All weights were tuned, by the one attention there was, whose name still holds; no size of a step was judged."""
    model = {**config["model"], "lora": {"rank": 0}}
    return {**config, "model": model, "train": {**config["train"], "spike_factor": None}}


_UPGRADES = {1: _from_1}

"""The parameters that scored best on the held-out rows, kept besides the newest checkpoints.

<workdir>/best/ is a run folder to read from: checkpoints/<step>/ holds what is trained, model/ describes the model, and
best.json says by which score it was chosen. best.json is written last; where it names no checkpoint, there is no best.

A resumed run goes on from its newest checkpoint, which may be older than the best: it then scores the steps between
once more, gets the same values, and keeps what it has, because only a better value replaces the best. It may also be
of the best step itself, whose write was cut off: that step is then scored and kept once more (train/exams.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from medtune_jax import processes
from medtune_jax.config import Config
from medtune_jax.config_values import get, leaves
from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.model.llama import Params
from medtune_jax.tasks.rows import registered_name, rows_sha256
from medtune_jax.train.inputs import Inputs
from medtune_jax.train.samples import MEAN, key_of, scored_sources
from medtune_jax.train.saved.checkpoints import Checkpoints
from medtune_jax.train.saved.run_folder import describe_model, write_whole

BEST = "best"
_RECORD = "best.json"
_log = logging.getLogger(__name__)


class Best:
    """The best parameters of one run. Use as a context manager: leaving it settles what is being written.

    Attributes:
      record: {metric, value, step, split, run} of the best so far; None before the first, and where none is kept.
    """

    def __init__(self, config: Config, inputs: Inputs, workdir: Path):
        """Reads what an earlier call has kept.

        Raises:
          UserError: no held-out row can give the score that checkpoint.best names.
        """
        self._config, self._inputs = config, inputs
        self._folder = workdir / BEST
        self._key, self._sign = _score(config, inputs)
        self._checkpoints = Checkpoints(self._folder / "checkpoints")
        self._run = _run(config, inputs)
        self._pending: dict[str, Any] | None = None
        self.record = self._read() if self._key else None

    def __enter__(self) -> Best:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        try:
            if kind is None:
                self.settle()
        finally:
            self._checkpoints.__exit__(kind, *error)

    def wants(self, line: Mapping[str, Any]) -> bool:
        """Returns whether `line`, of a step, holds the score and it is better than any before."""
        if not self._key or self._key not in line:
            return False
        best = self._pending or self.record
        # The same step scored again, on another mesh, differs by rounding: it is the one that is kept.
        return best is None or (best["step"] != line["step"] and self._sign * (line[self._key] - best["value"]) > 0)

    def offer(self, line: Mapping[str, Any], params: Params) -> bool:
        """Begins to keep the parameters of the step of `line` where it is wanted; returns whether."""
        if not self.wants(line):
            return False
        self.settle()
        metric, step, value = self._config.checkpoint.best, line["step"], line[self._key]
        self._pending = {"metric": metric, "value": value, "step": step, "split": line["split"], "run": self._run}
        self._folder.mkdir(exist_ok=True)
        if processes.is_first():
            describe_model(self._folder / "model", self._inputs)
        self._checkpoints.save_params(step, params, self._config, self._inputs.identity)
        return True

    def settle(self) -> None:
        """Returns when the best is on disk and said to be it; the one before is then removed.

        Called before each checkpoint is saved: a run that goes on from it will not score this step again.
        """
        if self._pending is None:
            return
        self._checkpoints.wait()
        self.record, self._pending = self._pending, None
        if processes.is_first():
            write_whole(self._folder / _RECORD, json.dumps(self.record, indent=2) + "\n")
        self._checkpoints.keep_only(self.record["step"])

    def _read(self) -> dict[str, Any] | None:
        path = self._folder / _RECORD
        if not path.is_file():
            return None
        try:
            record = dict(json.loads(path.read_text(encoding="utf-8")))
            kept = (self._checkpoints.folder / str(record["step"])).is_dir()
            same = record["run"] == self._run
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error!r}). Remove the folder {self._folder}.") from None
        if not kept or not same:
            _log.warning(
                "%s: %s; what scores best from here on takes its place.",
                self._folder,
                "its checkpoint is gone" if same else "chosen in another run, by another score or on other rows",
            )
            return None
        self._checkpoints.keep_only(record["step"])  # a write that was not settled is done again
        return record


def _score(config: Config, inputs: Inputs) -> tuple[str, Literal[1, -1]]:
    """Returns the key of the lines that hold the score, "" for none, and whether more (1) or less (-1) is better."""
    best = config.checkpoint.best
    if best in ("", "eval_loss"):
        return best, -1
    if best == "samples":
        return MEAN, 1
    sources = scored_sources(inputs.held_out.rows, config.evaluation.sample_rows)
    if registered_name(best) not in sources:
        known = sorted({"eval_loss", "samples", *sources})
        raise UserError(
            f"checkpoint.best={best}: no held-out row that is answered is of that source.{did_you_mean(best, known)} "
            f"There are {', '.join(known)}."
        )
    return key_of(registered_name(best)), 1


def _run(config: Config, inputs: Inputs) -> str:
    """Returns a hash of what makes values comparable: the score, the rows it is taken on, the run itself."""
    rows = "evaluation.max_rows" if config.checkpoint.best == "eval_loss" else "evaluation.sample_rows"
    chosen_by = ("checkpoint.best", rows)
    paths = [path for path, field, _ in leaves() if field.metadata["kind"] == "math" or path in chosen_by]
    identity = inputs.identity
    told = [
        *({path: get(config, path)} for path in paths),
        [identity.base_weights, identity.tokenizer, identity.template, identity.data],
        rows_sha256(inputs.held_out.rows),
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

"""The training run: what `medtune train` does, from a checkpoint and rows to a tuned model.

Features: sharded, packed training with accumulation; evaluation loss on held-out rows; asynchronous checkpoints; exact
resumption, also onto another mesh; a stop on SIGTERM that loses nothing; metrics.jsonl, TensorBoard and loss.png.

A batch is a pure function of the step and an update a pure function of (state, batch), so to resume is to restore the
state and go on at its step. The host runs one step ahead of the device: it dispatches an update, then reads the metrics
of the one before.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from medtune_jax.config import Config, to_dict
from medtune_jax.convert.hf_config import config_to_hf
from medtune_jax.convert.hf_import import load_params, read_config, weights_sha256
from medtune_jax.data.encode import EncodedRows, encode_rows
from medtune_jax.data.loader import TrainData, evaluation_batches
from medtune_jax.data.packing import order
from medtune_jax.data.prompts import Template, get_template
from medtune_jax.data.tokenizer import Tokenizer, check_vocab, load_tokenizer
from medtune_jax.errors import Interrupted, UserError
from medtune_jax.model.llama import LlamaConfig, num_params
from medtune_jax.sharding import BATCH_AXES, batch_sharding, make_mesh
from medtune_jax.tasks.rows import Row, read_rows
from medtune_jax.train.checkpoints import Checkpoints, Identity
from medtune_jax.train.metrics import MetricsLog, Progress, plot
from medtune_jax.train.optimizer import make_optimizer
from medtune_jax.train.signals import StopRequest
from medtune_jax.train.state import TrainState, abstract_state, init_state
from medtune_jax.train.step import abstract_batch, make_eval_step, make_train_step

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      steps: updates done in all; resumed_from: those done before this call.
      loss, eval_loss: the last ones logged, nats per loss token; None where there is none.
      tokens_per_second: non-padding tokens per second of training in this call, compilation not counted.
      seconds: wall time of this call; peak_memory_bytes: resident memory of this process at its highest.
      checkpoint: the folder of the last checkpoint.
    """

    steps: int
    resumed_from: int
    loss: float | None
    eval_loss: float | None
    tokens_per_second: float
    padded_tokens_per_second: float
    loss_tokens_per_second: float
    seconds: float
    peak_memory_bytes: int
    checkpoint: str


def train(config: Config, workdir: str | Path) -> Result:
    """Trains to the last step, or goes on from the newest checkpoint in `workdir`.

    Raises:
      UserError: configuration, model, tokenizer, data or checkpoint are missing, damaged or do not fit one another; the
        loss is no longer finite (names step and rows; the last good checkpoint stays); the disk is full.
      Interrupted: SIGTERM or SIGINT came; the state is saved.
    """
    began = time.perf_counter()
    config.validate()
    workdir = Path(workdir)
    with StopRequest() as stop:
        mesh = make_mesh(config.mesh)
        _check_batch(config, mesh)
        source = Path(config.model.path)
        model_config = _model_config(config, source)
        tokenizer = load_tokenizer(source)
        check_vocab(tokenizer, model_config.vocab_size)
        template = get_template(config.data.template)
        data = _train_data(config, tokenizer, template)
        evaluation = _evaluation_batches(config, tokenizer, template)
        _write_run_folder(workdir, config, model_config, tokenizer)
        use_compilation_cache()
        identity = Identity(
            base_weights=weights_sha256(source),
            tokenizer=tokenizer.sha256,
            template=template.sha256,
            data=data.sha256,
            model=config_to_hf(model_config),
        )
        optimizer = make_optimizer(config.optimizer, data.total_steps)
        with jax.set_mesh(mesh), Checkpoints(workdir / "checkpoints", config.checkpoint.keep) as checkpoints:
            state = checkpoints.restore(abstract_state(model_config, optimizer, mesh), config, identity)
            if state is None:
                state = init_state(load_params(source, model_config, np.float32, mesh), model_config, optimizer, mesh)
            first = int(state.step)
            log = MetricsLog(workdir, step=first, tensorboard=config.log.tensorboard)
            progress = Progress(first, data.total_steps)
            _introduce(progress, config, model_config, data, mesh, first)
            step_function = make_train_step(config, model_config, optimizer, mesh)
            eval_function = make_eval_step(config, model_config, mesh)
            run = _Run(config, workdir, mesh, data, evaluation, identity, checkpoints, log, progress, stop)
            try:
                run.loop(state, step_function, eval_function)
            finally:
                log.close()
    last = {key: line[key] for line in log.lines for key in ("loss", "eval_loss") if key in line}
    padded, plain, loss = (count / max(progress.seconds, 1e-9) for count in progress.tokens)
    return Result(
        steps=data.total_steps,
        resumed_from=first,
        loss=last.get("loss"),
        eval_loss=last.get("eval_loss"),
        tokens_per_second=plain,
        padded_tokens_per_second=padded,
        loss_tokens_per_second=loss,
        seconds=time.perf_counter() - began,
        peak_memory_bytes=peak_memory(),
        checkpoint=str(workdir / "checkpoints" / str(data.total_steps)),
    )


@dataclass(frozen=True)
class _Run:
    """What the loop needs beside state and functions."""

    config: Config
    workdir: Path
    mesh: Mesh
    data: TrainData
    evaluation: list[dict[str, jax.Array]]
    identity: Identity
    checkpoints: Checkpoints
    log: MetricsLog
    progress: Progress
    stop: StopRequest

    def loop(self, state: TrainState, train_step: Any, eval_step: Any) -> None:
        total, first = self.data.total_steps, int(state.step)
        if first == total:
            self.progress.say("Nothing to do: the last checkpoint is of the last step.")
            return
        compiled = self._compile(train_step, state, first)
        pending: tuple[int, Any] | None = None  # (updates done, metrics still on the device)
        for step in range(first, total):
            state, metrics = compiled(state, self._put(self.data.batch(step)))
            if pending is not None:
                self._report(*pending)
            pending = (step + 1, metrics)
            done = step + 1
            evaluates = _due(done, self.config.evaluation.every_steps, total) and self.evaluation
            saves = _due(done, self.config.checkpoint.every_steps, total) or self.stop
            if evaluates or saves:
                self._report(*pending)
                pending = None
                self.progress.pause()
                if evaluates:
                    self._evaluate(done, state, eval_step)
                if saves:
                    self.checkpoints.save(done, state, self.config, self.identity)
                    plot(self.log.lines, self.workdir / "loss.png")
                self.progress.resume()
            if self.stop and done < total:
                self.checkpoints.wait()
                raise Interrupted(
                    f"{self.stop.name} after step {done:,} of {total:,}; the state is saved in {self.workdir}. "
                    "Run the same command again to go on."
                )
        self.progress.pause()
        self.checkpoints.wait()

    def _compile(self, train_step: Any, state: TrainState, first: int) -> Any:
        began = time.perf_counter()
        compiled = train_step.lower(state, abstract_batch(self.data.batch(first), self.mesh)).compile()
        self.progress.say(f"Compiled the training step in {time.perf_counter() - began:.1f} s.")
        self.progress.resume()
        return compiled

    def _put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return put(batch, self.mesh)

    def _report(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """Reads the metrics of update `done` (waits for it); stops the run when they are not finite."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        tokens = self.data.tokens_in(done - 1)
        if not all(math.isfinite(values[name]) for name in ("loss", "weighted_loss", "grad_norm")):
            saved = self.checkpoints.steps()
            kept = f"The last good checkpoint is step {saved[-1]}." if saved else "No checkpoint was saved before it."
            rows = ", ".join(map(str, self.data.rows_in(done - 1)))
            raise UserError(
                f"Step {done}: loss {values['loss']}, gradient norm {values['grad_norm']}: not finite. Rows of the "
                f"batch (indices among the training rows read): {rows}. {kept} Look at these rows; lower "
                "--config.optimizer.learning_rate or set --config.optimizer.clip_norm."
            )
        self.progress.count(tokens)
        if _due(done, self.config.log.every_steps, self.data.total_steps):
            line: dict[str, Any] = {"step": done, "epoch": self.data.locate(done - 1)[0], **values}
            line |= {"positions": tokens[0], "tokens": tokens[1], "loss_tokens": tokens[2]}
            line |= self.progress.rates(done)
            self.log.write(line)
            self.progress.show(line)

    def _evaluate(self, done: int, state: TrainState, eval_step: Any) -> None:
        sums = [eval_step(state.params, batch) for batch in self.evaluation]
        total, count = (float(sum(part)) for part in zip(*jax.device_get(sums), strict=True))
        split = self.config.evaluation.split
        self.log.write({"step": done, "split": split, "eval_loss": total / count, "eval_loss_tokens": int(count)})
        self.progress.say(f"step {done:,}: loss on {split} rows {total / count:.4f}")


def put(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Lays a host batch out over the mesh; each process gives the rows of its own devices."""
    place = batch_sharding(mesh)
    return {name: jax.make_array_from_callback(x.shape, place, x.__getitem__) for name, x in batch.items()}


def use_compilation_cache() -> None:
    """Keeps compiled programs in $JAX_COMPILATION_CACHE_DIR, else in ~/.cache/medtune_jax/xla."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "medtune_jax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def peak_memory() -> int:
    """Returns the highest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _due(done: int, every: int, total: int) -> bool:
    """Whether something done every `every` steps (0 = never), and after the last, is due after `done` steps."""
    return every > 0 and (done % every == 0 or done == total)


def _check_batch(config: Config, mesh: Mesh) -> None:
    ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    micro = config.train.batch_size // config.train.accumulation
    if micro % ways:
        raise UserError(
            f"A micro-batch of {micro} sequences (train.batch_size / train.accumulation) cannot be split over {ways} "
            "devices (mesh dcn_data x data x fsdp): make batch_size a multiple of accumulation x that number."
        )


def _model_config(config: Config, source: Path) -> LlamaConfig:
    found = read_config(source)
    wanted = config.model.max_positions
    if wanted is not None and wanted != found.max_positions:
        if wanted > found.max_positions:
            _log.warning(
                "model.max_positions raised from %d to %d: the checkpoint has never seen the positions beyond, its "
                "answers there rest on this training alone.",
                found.max_positions,
                wanted,
            )
        found = dataclasses.replace(found, max_positions=wanted)
    if config.data.max_length > found.max_positions:
        raise UserError(
            f"data.max_length is {config.data.max_length}, but the model in {source} has {found.max_positions} "
            f"positions: set --config.data.max_length={found.max_positions}, or --config.model.max_positions="
            f"{config.data.max_length} to extrapolate."
        )
    return found


def _train_data(config: Config, tokenizer: Tokenizer, template: Template) -> TrainData:
    rows = read_rows(config.data.path, split="train", sources=config.data.sources)
    return TrainData(
        _encode(config, tokenizer, template, rows, "train"),
        max_length=config.data.max_length,
        batch_size=config.train.batch_size,
        packing=config.data.packing,
        seed=config.train.seed,
        steps=config.train.steps,
        epochs=config.train.epochs,
    )


def _evaluation_batches(config: Config, tokenizer: Tokenizer, template: Template) -> list[dict[str, np.ndarray]]:
    """Returns the held-out batches; none, with a warning, where the data has no such split."""
    split, path = config.evaluation.split, Path(config.data.path)
    if not config.evaluation.every_steps:
        return []
    if path.is_file():
        _log.warning("No evaluation during training: %s is one file, without a split '%s'.", path, split)
        return []
    try:
        rows = [row for row in read_rows(path, split) if row.source in config.data.sources or not config.data.sources]
    except UserError as error:
        _log.warning("No evaluation during training: %s", error)
        return []
    rows = [rows[i] for i in sorted(order(len(rows), seed=0, epoch=0)[: config.evaluation.max_rows])]
    if not rows:
        _log.warning("No evaluation during training: no %s rows of %s.", split, ", ".join(config.data.sources))
        return []
    micro = config.train.batch_size // config.train.accumulation
    return evaluation_batches(_encode(config, tokenizer, template, rows, split), config.data.max_length, micro)


def _encode(config: Config, tokenizer: Tokenizer, template: Template, rows: list[Row], split: str) -> EncodedRows:
    encoded, report = encode_rows(
        tokenizer,
        template,
        rows,
        max_length=config.data.max_length,
        overlong=config.data.overlong,
        decision_weight=config.train.decision_weight,
    )
    if report.dropped or report.truncated:
        _log.warning(
            "%s: %d of %d rows are longer than %d tokens (the longest %d): %d dropped, %d cut.",
            split,
            report.dropped + report.truncated,
            report.rows,
            config.data.max_length,
            report.longest,
            report.dropped,
            report.truncated,
        )
    return encoded


def _write_run_folder(workdir: Path, config: Config, model_config: LlamaConfig, tokenizer: Tokenizer) -> None:
    """Writes config.json and model/ (the tuned model's own config.json and tokenizer files)."""
    try:
        (workdir / "model").mkdir(parents=True, exist_ok=True)
        _write_json(workdir / "config.json", to_dict(config))
        _write_json(workdir / "model" / "config.json", config_to_hf(model_config))
        tokenizer.copy_to(workdir / "model")
    except OSError as error:
        raise UserError(f"The run folder {workdir} cannot be written: {error.strerror}.") from error


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _introduce(
    progress: Progress, config: Config, model_config: LlamaConfig, data: TrainData, mesh: Mesh, first: int
) -> None:
    sizes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    progress.say(
        f"{num_params(model_config):,} parameters on {sizes}, {config.train.precision}; {data.total_steps:,} steps of "
        f"{config.train.batch_size} x {config.data.max_length} positions, {data.steps_in_epoch(0):,} steps in the "
        f"first epoch, {data.filled:.1%} of positions filled, up to {data.budget} loss tokens in a sequence."
    )
    if first:
        progress.say(f"Resuming after step {first:,}.")

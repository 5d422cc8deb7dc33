"""The training run: what `medtune train` does, from a checkpoint and rows to a tuned model.

Features: sharded, packed training with accumulation; evaluation loss on held-out rows; asynchronous checkpoints; exact
resumption, also onto another mesh; a stop on SIGTERM that loses nothing; metrics.jsonl, TensorBoard and loss.png.

A batch is a pure function of the step and an update a pure function of (state, batch), so to resume is to restore the
state and go on at its step. The host runs one step ahead of the device: it dispatches an update, then reads the metrics
of the one before.
"""

from __future__ import annotations

import errno
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from medtune_jax.compilation_cache import use_compilation_cache
from medtune_jax.config import Config
from medtune_jax.config_values import to_dict
from medtune_jax.convert.origin import ORIGIN_FILE, origin_json
from medtune_jax.data.loader import Batch
from medtune_jax.errors import Interrupted, UserError
from medtune_jax.model.llama import Params, num_params
from medtune_jax.sharding import batch_sharding, make_mesh
from medtune_jax.train.checkpoints import Checkpoints, full_disk_named
from medtune_jax.train.inputs import Inputs, read_inputs
from medtune_jax.train.metrics import MetricsLog, Progress, Recorder, due, plot
from medtune_jax.train.optimizer import make_optimizer
from medtune_jax.train.signals import StopRequest
from medtune_jax.train.state import abstract_state, init_state
from medtune_jax.train.step import abstract_batch, make_eval_step, make_train_step
from medtune_jax.train.trainable import init_trainable, load_frozen


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      steps: updates done in all; resumed_from: those done before this call.
      loss, eval_loss: the last ones logged, nats per loss token; None where there is none.
      padded_tokens_per_second, tokens_per_second (without padding), loss_tokens_per_second: while training in this
        call; compilation, evaluation and saving not counted.
      seconds: wall time of this call; peak_memory_bytes: resident memory of this process at its highest.
      checkpoint: the folder of the last checkpoint.
    """

    steps: int
    resumed_from: int
    loss: float | None
    eval_loss: float | None
    padded_tokens_per_second: float
    tokens_per_second: float
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
    workdir = Path(workdir)
    use_compilation_cache()
    keep = config.validate().checkpoint.keep
    with full_disk_named(workdir), StopRequest() as stop, Checkpoints(workdir / "checkpoints", keep) as checkpoints:
        mesh = make_mesh(config.mesh)
        inputs = read_inputs(config, mesh)
        data, total = inputs.data, inputs.data.total_steps
        optimizer = make_optimizer(config.optimizer, total)
        frozen = load_frozen(config, inputs.model, inputs.source, mesh)
        state = checkpoints.restore(abstract_state(config, inputs.model, optimizer, mesh), config, inputs.identity)
        if state is None:
            params = init_trainable(config, inputs.model, inputs.source, mesh)
            state = init_state(params, config, inputs.model, optimizer, mesh)
            del params  # the state owns them: the first update gives their memory up
        first = int(state.step)
        _write_run_folder(workdir, config, inputs)
        progress = Progress(first, total)
        progress.say(_introduction(config, inputs, mesh, first))

        with MetricsLog(workdir, step=first, tensorboard=config.log.tensorboard) as log, jax.set_mesh(mesh):
            recorder = Recorder(config.log.every_steps, inputs, log, progress, checkpoints.steps)
            evaluate = _make_evaluate(config, inputs, frozen, mesh)
            if first < total:
                began_compiling = time.perf_counter()
                update = make_train_step(config, inputs.model, optimizer, mesh)
                compiled = update.lower(state, frozen, abstract_batch(data.batch(first), mesh)).compile()
                progress.say(f"Compiled the update in {time.perf_counter() - began_compiling:.1f} s.")

            progress.resume()
            for done in range(first + 1, total + 1):
                state, metrics = compiled(state, frozen, put(data.batch(done - 1), mesh))
                recorder.push(done, metrics)

                stopping = stop.requested  # asked once: a signal during what follows waits for the next step
                evaluates = bool(inputs.evaluation) and due(done, config.evaluation.every_steps, total)
                saves = bool(stopping) or done == total or due(done, config.checkpoint.every_steps, total)
                if evaluates or saves:
                    recorder.flush()  # the loss is finite up to here, or this raises: what is saved is good
                    progress.pause()
                    if evaluates:
                        log.write({"step": done, "split": config.evaluation.split, **evaluate(state.params)})
                        progress.say(f"step {done:,}: evaluation loss {log.lines[-1]['eval_loss']:.4f}")
                    if saves:
                        checkpoints.save(done, state, config, inputs.identity)
                        plot(log.lines, workdir / "loss.png")
                    progress.resume()
                if stopping and done < total:
                    checkpoints.wait()
                    raise Interrupted(
                        f"{stopping} after step {done:,} of {total:,}; the state is saved. "
                        f"To go on: medtune train --workdir={workdir}"
                    )
            progress.pause()
            checkpoints.wait()
    return Result(
        steps=total,
        resumed_from=first,
        loss=log.last("loss"),
        eval_loss=log.last("eval_loss"),
        **progress.totals(),
        seconds=time.perf_counter() - began,
        peak_memory_bytes=peak_memory(),
        checkpoint=str(workdir / "checkpoints" / str(total)),
    )


def put(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Lays a host batch out over the mesh; each process gives the rows of its own devices."""
    place = batch_sharding(mesh)
    return {name: jax.make_array_from_callback(x.shape, place, x.__getitem__) for name, x in batch.items()}


def peak_memory() -> int:
    """Returns the highest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _make_evaluate(config: Config, inputs: Inputs, frozen: Params, mesh: Mesh) -> Callable[[Any], dict[str, Any]]:
    """Returns params -> the loss on the held-out rows, nats per loss token."""
    eval_step = make_eval_step(config, inputs.model, mesh)

    def evaluate(params: Any) -> dict[str, Any]:
        sums = jax.device_get([eval_step(params, frozen, put(batch, mesh)) for batch in inputs.evaluation])
        total, count = (float(sum(part)) for part in zip(*sums, strict=True))
        if not math.isfinite(total):
            raise UserError(
                f"The loss on the {config.evaluation.split} rows is {total}: training diverged in the last step. Lower "
                "--config.optimizer.learning_rate and train in another --workdir."
            )
        return {"eval_loss": total / count, "eval_loss_tokens": int(count)}

    return evaluate


def _write_run_folder(workdir: Path, config: Config, inputs: Inputs) -> None:
    """Writes config.json, and model/: the tuned model's own config.json, tokenizer files and origin.json.

    Weights tuned on gated text can repeat it, so the folder is then closed to others.
    """
    try:
        if inputs.origin.credentialed:
            workdir.mkdir(mode=0o700, parents=True, exist_ok=True)  # closed before anything lies in it
            workdir.chmod(0o700)  # also one that was there
        (workdir / "model").mkdir(parents=True, exist_ok=True)
        for path, value in (
            (workdir / "config.json", to_dict(config)),
            (workdir / "model" / "config.json", inputs.identity.model),
            (workdir / "model" / ORIGIN_FILE, origin_json(inputs.origin)),
        ):
            temporary = path.with_suffix(".json.tmp")
            temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
            temporary.replace(path)
        inputs.tokenizer.copy_to(workdir / "model")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(f"The run folder {workdir} cannot be written: {error.strerror}.") from error


def _introduction(config: Config, inputs: Inputs, mesh: Mesh, first: int) -> str:
    data = inputs.data
    axes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    return (
        f"{num_params(inputs.model):,} parameters on {axes}, {config.train.precision}. {data.total_steps:,} steps of "
        f"{config.train.batch_size} x {config.data.max_length} positions ({data.filled:.1%} filled, up to "
        f"{data.budget} loss tokens in a sequence); {data.steps_in_epoch(0):,} steps in the first epoch."
    ) + (f" Going on after step {first:,}." if first else "")

"""The training run: what `medtune train` does, from a checkpoint and rows to a tuned model.

Features: sharded, packed training with accumulation; on held-out rows the loss, and answers that are scored; the best
parameters kept; asynchronous checkpoints; exact resumption, also onto another mesh; a stop on SIGTERM that loses
nothing; metrics.jsonl, TensorBoard and loss.png; a window under the profiler.

A batch is a pure function of the step and an update a pure function of (state, batch), so to resume is to restore the
state and go on at its step. The host never waits for the update it has just dispatched: it reads the metrics of the one
before, and the batches of the next ones are made meanwhile on a thread of their own.
"""

from __future__ import annotations

import resource
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from medtune_jax.compilation_cache import use_compilation_cache
from medtune_jax.config import Config
from medtune_jax.errors import Interrupted, UserError
from medtune_jax.model.backends import Backend, verified
from medtune_jax.model.llama import num_params
from medtune_jax.model.lora import num_adapter_params
from medtune_jax.processes import ending_together
from medtune_jax.sharding import make_mesh
from medtune_jax.train.abstract import lower_step
from medtune_jax.train.agreement import refuse_unshared
from medtune_jax.train.bad_step import bad_step_policy, refuse_to_pass
from medtune_jax.train.exams import Exam, Exams
from medtune_jax.train.feed import prefetched, put_rows
from medtune_jax.train.held_out_loss import make_evaluate
from medtune_jax.train.inputs import Inputs, read_inputs
from medtune_jax.train.optimizer import make_optimizer
from medtune_jax.train.records.boards import check_boards, open_boards
from medtune_jax.train.records.metrics import MetricsLog, Recorder, due, read_lines
from medtune_jax.train.records.plot import plot
from medtune_jax.train.records.profiling import ProfileWindow
from medtune_jax.train.records.progress import Progress, spent_before
from medtune_jax.train.records.throughput import Work, device_memory, flops_per_token, peak_flops
from medtune_jax.train.samples import make_sample
from medtune_jax.train.saved.best import Best
from medtune_jax.train.saved.checkpoints import Checkpoints
from medtune_jax.train.saved.disk import one_writer, refuse_object_store, storage_errors_named
from medtune_jax.train.saved.run_folder import write_run_folder
from medtune_jax.train.signals import StopRequest
from medtune_jax.train.state import TrainState, abstract_state, init_state
from medtune_jax.train.step import attention_backend
from medtune_jax.train.trainable import init_trainable, load_frozen


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      steps: updates done in all; resumed_from: those done before this call.
      loss, eval_loss: the last ones logged, nats per loss token; None where there is none.
      padded_tokens_per_second, tokens_per_second (without padding), loss_tokens_per_second: of all devices, and the
        same ..._per_device, while training in this call; compilation, evaluation and saving not counted.
      mfu: model FLOPs utilisation at that speed (train/records/throughput.py); None where the peak is not known.
      goodput: time in updates over the time that the run has run, its resumptions included.
      seconds: wall time of this call; peak_memory_bytes: resident memory of this process at its highest;
        device_memory_bytes: the most in use on any device of this process, None where the backend does not say.
      checkpoint: the folder of the last checkpoint.
      best: {metric, value, step, split} of the parameters in <workdir>/best; None where none are kept.
    """

    steps: int
    resumed_from: int
    loss: float | None
    eval_loss: float | None
    padded_tokens_per_second: float
    tokens_per_second: float
    loss_tokens_per_second: float
    padded_tokens_per_second_per_device: float
    tokens_per_second_per_device: float
    loss_tokens_per_second_per_device: float
    mfu: float | None
    goodput: float
    seconds: float
    peak_memory_bytes: int
    device_memory_bytes: int | None
    checkpoint: str
    best: dict[str, Any] | None


def train(config: Config, workdir: str | Path) -> Result:
    """Trains to the last step, or goes on from the newest checkpoint in `workdir`.

    Raises:
      UserError: configuration, model, tokenizer, data or checkpoint are missing, damaged or do not fit one another; the
        loss is no longer finite, or explodes (names step and rows; the state without that update is saved); the disk
        is full.
      Interrupted: SIGTERM or SIGINT came; the state is saved (before the first update there is nothing to save). Or
        another machine holds the run folder.
    """
    began = time.perf_counter()
    refuse_object_store(workdir, "--workdir")
    refuse_object_store(config.data.cache_dir, "--config.data.cache_dir")
    workdir = Path(workdir)
    use_compilation_cache()
    keep = config.validate().checkpoint.keep
    check_boards(config.log)
    with (
        storage_errors_named(workdir),
        ExitStack() as held,
        StopRequest() as stop,
        Checkpoints(workdir / "checkpoints", keep) as checkpoints,
        ending_together(lambda: _how_to_go_on(workdir, checkpoints)),
        storage_errors_named(workdir),  # here too: what ends all processes is told in its words
    ):
        mesh = make_mesh(config.mesh)
        held.enter_context(one_writer(workdir))
        refuse_unshared(workdir)
        inputs = read_inputs(config, mesh)
        stop.before_updates()
        data, total, rows = inputs.data, inputs.data.total_steps, config.train.batch_size
        backend = _attention_backend(config, inputs, mesh)
        running = replace(config, model=replace(config.model, attention=backend.name))
        optimizer = make_optimizer(config.optimizer, total)
        frozen = load_frozen(config, inputs.model, inputs.source, mesh)
        state = checkpoints.restore(abstract_state(config, inputs.model, optimizer, mesh), running, inputs.identity)
        if state is None:
            params = init_trainable(config, inputs.model, inputs.source, mesh)
            state = init_state(params, config, inputs.model, optimizer, mesh)
            del params  # the state owns them: the first update gives their memory up
        stop.before_updates()
        first = int(state.step)
        write_run_folder(workdir, config, inputs)
        spent = spent_before(read_lines(workdir / "metrics.jsonl"), first)
        progress = Progress(first, total, work=_work(config, inputs, mesh), began=began, before=spent)
        progress.say(_introduction(config, inputs, mesh, first, backend))

        with (
            MetricsLog(workdir, step=first, boards=open_boards(config, workdir, first)) as log,
            jax.set_mesh(mesh),
            prefetched(lambda step: put_rows(partial(data.batch, step), rows, mesh), range(first, total)) as batches,
            ProfileWindow(config.log, workdir, progress) as profile,
            Best(running, inputs, workdir) as best,
        ):
            refuse_to_pass(config.train, log.lines, first)
            recorder = Recorder(config.log.every_steps, inputs, log, progress, bad_step_policy(config.train, inputs))
            evaluate = make_evaluate(running, inputs, frozen, mesh)
            sample = make_sample(running, inputs, frozen, mesh, workdir / "samples")
            exams = Exams(
                [
                    Exam("eval_loss", config.evaluation.every_steps, evaluate),
                    Exam("samples", config.evaluation.samples_every_steps, sample),
                ],
                *(inputs.held_out.split, total, log, best, progress),
            )
            saved = partial(_saved, checkpoints)

            def save(done: int, state: TrainState) -> None:
                best.settle()
                log.sync()
                checkpoints.save(done, state, running, inputs.identity)

            def stop_if(signal: str, done: int) -> None:
                if signal and (done < total or exams.owed(done)):
                    checkpoints.wait()
                    raise Interrupted(
                        f"{signal} after step {done:,} of {total:,}; the state is saved. "
                        f"To go on: medtune train --workdir={workdir}"
                    )

            if first < total:
                began_compiling = time.perf_counter()
                lowered = lower_step(running, inputs.model, mesh, optimizer=optimizer, batch=data.batch(first))
                compiled = lowered.compile()
                progress.say(f"Compiled the update in {time.perf_counter() - began_compiling:.1f} s.")

            stop.updates_begin()
            if first:  # what was cut short after the checkpoint was saved
                stopping = exams.hold(first, state.params, stopping=stop.asked, saved=saved)
                plot(log.lines, workdir / "loss.png")
                stop_if(stopping, first)
            progress.resume()
            for done, batch in enumerate(batches, first + 1):
                profile.before_update()
                with jax.transfer_guard("disallow"), jax.profiler.StepTraceAnnotation("train", step_num=done):
                    state, metrics = compiled(state, frozen, batch)
                    recorder.push(done, metrics)
                profile.after_update(metrics)

                stopping, examined = stop.asked(), exams.due(done)
                saves = done == total or due(done, config.checkpoint.every_steps, total)
                if recorder.ends or stopping or examined or saves:
                    recorder.flush()
                    progress.pause()
                    saves |= bool(recorder.ends or stopping)
                    if saves:  # before the examinations: they can take longer than is left after a signal
                        save(done, state)
                    if recorder.ends:
                        raise UserError(f"{recorder.ends} {saved()} It is the state without the bad update.")
                    if not stopping:
                        stopping = exams.hold(done, state.params, stopping=stop.asked, saved=saved)
                        if stopping and not saves:
                            save(done, state)
                    if saves or stopping:
                        plot(log.lines, workdir / "loss.png")
                    stop_if(stopping, done)
                    progress.resume()
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
        device_memory_bytes=device_memory(),
        checkpoint=str(workdir / "checkpoints" / str(total)),
        best=best.record and {name: best.record[name] for name in ("metric", "value", "step", "split")},
    )


def peak_memory() -> int:
    """Returns the highest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _how_to_go_on(workdir: Path, checkpoints: Checkpoints) -> str:
    return f"{_on_disk(checkpoints)} To go on, start all processes again: medtune train --workdir={workdir}"


def _saved(checkpoints: Checkpoints) -> str:
    """Returns when the checkpoint under way is on disk, and says which is the newest."""
    checkpoints.wait()
    return _on_disk(checkpoints)


def _on_disk(checkpoints: Checkpoints) -> str:
    saved = checkpoints.steps()
    return f"Checkpoint {saved[-1]} is on disk." if saved else "No checkpoint was saved yet."


def _work(config: Config, inputs: Inputs, mesh: Mesh) -> Work:
    """Returns what an update computes on, for the utilisation."""
    flops = flops_per_token(inputs.model, config.model.lora, config.data.max_length)
    return Work(flops, mesh.size, peak_flops(mesh.devices.flat[0].device_kind))


def _attention_backend(config: Config, inputs: Inputs, mesh: Mesh) -> Backend:
    held_out = [int(batch["segment_ids"].max()) for batch in inputs.evaluation]
    chosen = attention_backend(config, inputs.model, mesh, documents=max([inputs.data.documents, *held_out]))
    return verified(chosen, mesh, heads=inputs.model.num_heads, kv_heads=inputs.model.num_kv_heads)


def _held_out(config: Config, inputs: Inputs) -> str:
    rows = f"{len(inputs.held_out.rows):,} rows"
    if not config.evaluation.holdout:
        return f"{rows} of {inputs.held_out.split}"
    ignored = f", so evaluation.split={config.evaluation.split} is not read"
    return f"{rows} of the training rows (evaluation.holdout){ignored}"


def _introduction(config: Config, inputs: Inputs, mesh: Mesh, first: int, backend: Backend) -> str:
    data = inputs.data
    axes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    lora = config.model.lora
    adapters = f" (frozen) and {num_adapter_params(inputs.model, lora):,} in adapters" if lora.rank else ""
    return (
        f"{num_params(inputs.model):,} parameters{adapters} on {axes}, {config.train.precision}, attention {backend}. "
        f"{data.total_steps:,} steps of {config.train.batch_size} x {config.data.max_length} positions "
        f"({data.filled:.1%} filled, up to {data.budget} loss tokens in a sequence): {data.epochs:.2f} epochs "
        f"of {data.tokens_in_epoch:,} tokens, {data.steps_in_epoch(0):,} steps in the first. "
        f"Held out: {_held_out(config, inputs)}."
    ) + (f" Going on after step {first:,}." if first else "")

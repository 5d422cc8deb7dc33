"""A training run in a process of its own, and ways to end it at a chosen moment."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_run import flags

from medtune_jax.config import Config

REPOSITORY = Path(__file__).resolve().parents[2]
_PATIENCE = 120.0  # seconds without the awaited event: the run hangs
_POLL = 0.0005  # seconds; a tiny checkpoint is written in some tens of milliseconds
_MEASURED = ("second", "mfu", "goodput", "memory")  # parts of the names of what may differ between equal runs


def start(config: Config, workdir: Path, *, program: tuple[str, ...] = ("-m", "medtune_jax")) -> subprocess.Popen[str]:
    """Starts `python -m medtune_jax train` on one device; its output goes to <workdir>.log, appended."""
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(REPOSITORY)}
    with workdir.with_suffix(".log").open("a") as output:
        command = [sys.executable, *program, *flags(config, workdir)]
        return subprocess.Popen(command, stdout=output, stderr=output, text=True, env=environment)


def kill_at(phase: str, config: Config, workdir: Path, count: int) -> bool:
    """Runs until the run kills itself when `phase` (of killed.py) comes for the count-th time; whether it did."""
    process = start(config, workdir, program=(str(Path(__file__).with_name("killed.py")), phase, str(count)))
    return process.wait(_PATIENCE) == -signal.SIGKILL


def kill_in_a_write(config: Config, workdir: Path, count: int) -> bool:
    """Kills inside the count-th write of a new process; False where the write was complete before the kill."""
    process = start(config, workdir)
    assert signal_when(process, workdir, is_writing(workdir, count), signal.SIGKILL) == -signal.SIGKILL
    return bool(writes_in_progress(workdir))


def kill_after_a_step(config: Config, workdir: Path, steps: int) -> bool:
    """Kills right after the line of a step, `steps` beyond those of the newest checkpoint, appears."""
    checkpoints = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    logged = steps_logged(workdir)
    process = start(config, workdir)
    resumed = max(checkpoints, default=0)
    began = has_logged(workdir, resumed + steps)
    # A resumed run first cuts the lines of steps that it will do again.
    cut = (lambda: steps_logged(workdir) <= resumed) if logged > resumed else (lambda: True)
    seen_cut = False

    def moment() -> bool:
        nonlocal seen_cut
        seen_cut = seen_cut or cut()
        return seen_cut and began()

    assert signal_when(process, workdir, moment, signal.SIGKILL) == -signal.SIGKILL
    return steps_logged(workdir) >= resumed + steps


def finish(config: Config, workdir: Path) -> None:
    """Runs to the end; fails with the end of the log otherwise."""
    process = start(config, workdir)
    assert process.wait(_PATIENCE) == 0, tail(workdir)


def tail(workdir: Path) -> str:
    return workdir.with_suffix(".log").read_text()[-3000:]


def steps_logged(workdir: Path) -> int:
    """The last step in metrics.jsonl, 0 where there is none."""
    return max((line["step"] for line in metric_lines(workdir)), default=0)


def metric_lines(workdir: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl, without what measures time."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    return [{k: v for k, v in line.items() if not any(part in k for part in _MEASURED)} for line in lines]


def writes_in_progress(workdir: Path) -> list[Path]:
    """Checkpoints that are not complete yet."""
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def is_writing(workdir: Path, count: int) -> Callable[[], bool]:
    """True once the `count`-th write that begins after this call is under way (leftovers do not count)."""
    seen = set(writes_in_progress(workdir))
    known = len(seen)

    def check() -> bool:
        seen.update(writes_in_progress(workdir))
        return len(seen) >= known + count and bool(set(writes_in_progress(workdir)))

    return check


def has_logged(workdir: Path, step: int) -> Callable[[], bool]:
    """True once the line of `step` is in metrics.jsonl."""
    return lambda: steps_logged(workdir) >= step


def signal_when(
    process: subprocess.Popen[str], workdir: Path, moment: Callable[[], bool], number: signal.Signals
) -> int:
    """Sends the signal as soon as `moment()` holds; returns the exit status, or None's stand-in -signal for a kill."""
    deadline = time.monotonic() + _PATIENCE
    while not moment():
        assert process.poll() is None, f"the run ended by itself:\n{tail(workdir)}"
        assert time.monotonic() < deadline, f"the moment never came:\n{tail(workdir)}"
        time.sleep(_POLL)
    process.send_signal(number)
    return process.wait(_PATIENCE)


def final_arrays(workdir: Path) -> dict[str, Any]:
    """Every file of arrays of the newest checkpoint, read back: path in the tree -> numpy array."""
    import jax
    import orbax.checkpoint as ocp

    newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    found = {}
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # whatever the run's devices were
    for item in ("params", "optimizer"):
        folder = (workdir / "checkpoints" / str(newest) / item).absolute()
        with ocp.StandardCheckpointer() as reader:
            stored = reader.metadata(folder).item_metadata.tree
            tree = reader.restore(
                folder, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one_device), stored)
            )
        for path, leaf in jax.tree.leaves_with_path(tree):
            found[f"{newest}/{item}{jax.tree_util.keystr(path)}"] = jax.device_get(leaf)
    return found

"""A command in two processes on this machine, started by flags or by SLURM's variables; as a rule a training run."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kills import REPOSITORY
from tiny_run import flags

from medtune_jax.config import Config

PATIENCE = 400.0  # seconds; a run that takes longer hangs


def free_port() -> int:
    """Returns a port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(
    config: Config,
    workdir: Path,
    *,
    only: int | None = None,
    timeout: int = 60,
    slurm: bool = False,
    port: int = 0,
    **more: int,
) -> list[subprocess.Popen[str]]:
    """Starts a training run as `launch` does; more: further flags."""
    words = [*flags(config, workdir), *(f"--{name}={value}" for name, value in more.items())]
    return launch(words, workdir, only=only, timeout=timeout, slurm=slurm, port=port)


def launch(
    words: list[str],
    workdir: Path,
    *,
    devices: int = 1,
    only: int | None = None,
    timeout: int = 60,
    slurm: bool = False,
    port: int = 0,
) -> list[subprocess.Popen[str]]:
    """Starts `medtune *words` as both of two processes, or process `only`; the output of i goes to <workdir>.<i>.log.

    devices: of each; timeout: --process_timeout; slurm: told by SLURM's variables in place of flags; port: of the
    coordinator.
    """
    port = port or free_port()
    processes = []
    for index in range(2) if only is None else [only]:
        flag = f"--xla_force_host_platform_device_count={devices}" if devices > 1 else ""
        environment = {**os.environ, "XLA_FLAGS": flag, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "medtune_jax", *words, f"--process_timeout={timeout}"]
        if slurm:
            environment |= {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
            environment |= {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index), "SLURM_STEP_NUM_NODES": "1"}
            environment |= {"JAX_COORDINATOR_PORT": str(port)}
        else:
            command += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={index}"]
        with log_path(workdir, index).open("a") as output:
            processes.append(subprocess.Popen(command, stdout=output, stderr=output, text=True, env=environment))
    return processes


def log_path(workdir: Path, index: int) -> Path:
    return workdir.with_suffix(f".{index}.log")


def log(workdir: Path, index: int) -> str:
    return log_path(workdir, index).read_text()


@contextmanager
def running(*args: Any, **keywords: Any) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts as `start` does; however the block is left, nothing runs on."""
    pair = start(*args, **keywords)
    try:
        yield pair
    finally:
        for process in pair:
            process.kill()


def until(moment: Callable[[], bool], workdir: Path, pair: list[subprocess.Popen[str]]) -> None:
    """Returns as soon as `moment()` holds."""
    deadline = time.monotonic() + PATIENCE
    while not moment():
        ended = any(process.poll() is not None for process in pair)
        assert not ended and time.monotonic() < deadline, "\n".join(log(workdir, i)[-3000:] for i in range(len(pair)))
        time.sleep(0.001)


def wait(processes: list[subprocess.Popen[str]], workdir: Path) -> list[int]:
    """Returns the exit statuses; ends all and fails where one hangs."""
    deadline = time.monotonic() + PATIENCE
    try:
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired:
        raise AssertionError("\n".join(log(workdir, i)[-3000:] for i in range(len(processes)))) from None
    finally:
        for process in processes:
            process.kill()

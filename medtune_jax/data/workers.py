"""Rows encoded in several processes, in order.

A worker is this module run as a program: it reads what to do from its standard input and answers on its standard
output, so it needs nothing of the program that started it and ends with it, even when that is killed.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtune_jax.data.encode import CHUNK, Policy, Tally, encode_chunk
from medtune_jax.data.encoded import EncodedRows
from medtune_jax.data.prompts import Template
from medtune_jax.data.tokenizer import Tokenizer, load_tokenizer
from medtune_jax.errors import UserError
from medtune_jax.tasks.definition import definition_of, register_definitions
from medtune_jax.tasks.registry import find_source
from medtune_jax.tasks.rows import Row

_MOST = 16  # more processes would wait for the one that writes


@dataclass(frozen=True)
class _Setup:
    """What a worker needs to know before the first row."""

    tokenizer: Path
    template: Template
    policy: Policy
    definitions: dict[str, dict[str, Any]]


def user_definitions(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Returns the definitions of the user's own sources among the rows, by name, sorted."""
    found = {}
    for name in sorted({row.source for row in rows}):
        source = find_source(name)
        definition = None if source is None else definition_of(source)
        if source is not None and definition is not None:
            found[source.name] = definition
    return found


def count_workers(rows: int) -> int:
    """Returns how many processes encode so many rows: a core each, at most 16, a chunk of rows for each at least."""
    return min(len(os.sched_getaffinity(0)), _MOST, -(-rows // CHUNK))


def encode_in_order(
    tokenizer: Tokenizer, template: Template, rows: Sequence[Row], policy: Policy, workers: int
) -> Iterator[tuple[EncodedRows, Tally]]:
    """Yields what `encode_chunk` gives for each chunk of rows, in order; the same for any number of workers.

    Raises:
      UserError: as `encode_chunk`.
      RuntimeError: a worker died.
    """
    starts = range(0, len(rows), CHUNK)
    if workers < 2:
        for start in starts:
            yield encode_chunk(tokenizer, template, rows[start : start + CHUNK], start, policy)
        return
    setup = _Setup(tokenizer.folder.resolve(), template, policy, user_definitions(rows))
    running: list[subprocess.Popen[bytes]] = []
    idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def encode(start: int) -> tuple[EncodedRows, Tally]:
        worker = idle.get()
        try:
            return _ask(worker, (start, rows[start : start + CHUNK]))
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(workers) as pool:
        try:
            for _ in range(workers):
                running.append(_start(setup))
                idle.put(running[-1])
            yield from pool.map(encode, starts)
        finally:
            for worker in running:
                worker.kill()
            pool.shutdown(cancel_futures=True)
            for worker in running:
                worker.communicate()


def _start(setup: _Setup) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "medtune_jax.data.workers"]
    try:
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert worker.stdin is not None  # it was asked for
        pickle.dump(setup, worker.stdin)
        worker.stdin.flush()
    except OSError as error:
        raise RuntimeError(f"A process that encodes rows cannot be started: {error}.") from error
    return worker


def _ask(worker: subprocess.Popen[bytes], task: tuple[int, Sequence[Row]]) -> tuple[EncodedRows, Tally]:
    assert worker.stdin is not None and worker.stdout is not None
    try:
        pickle.dump(task, worker.stdin)
        worker.stdin.flush()
        answer = pickle.load(worker.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
        raise RuntimeError(
            f"A process that encodes rows ended with status {worker.wait()} (short of memory?). Run the same again."
        ) from error
    if isinstance(answer, UserError):
        raise answer
    return answer


def _serve() -> None:
    """Answers until standard input ends: the first message is the setup, each later one (index, rows)."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the process that asks decides
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints gets between the answers
    try:
        setup: _Setup = pickle.load(sys.stdin.buffer)
        register_definitions(setup.definitions)
        tokenizer = load_tokenizer(setup.tokenizer, threads=1)
        while True:
            first, rows = pickle.load(sys.stdin.buffer)
            try:
                answer: Any = encode_chunk(tokenizer, setup.template, rows, first, setup.policy)
            except UserError as error:
                answer = error
            pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    _serve()

"""A program that runs `medtune ...` in forked children, each killed where it is told: one start of Python for many.

It reads an object a line from stdin, {"argv", "moment", "number"}, and answers with the child's exit status, or minus
the signal that ended it. A moment is null (nobody is killed) or one of MOMENTS with its argument, as ["answers", 3].
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medtune_jax.cli import main
from medtune_jax.evaluate import keyed_log, predictions, run
from medtune_jax.generate import core, engine  # noqa: F401 - imported once, before the forks
from medtune_jax.train import load  # noqa: F401


def answers(count: int, die: Callable[[], None]) -> None:
    """`count` answers are recorded, some of them not on disk yet; 0 = the first is about to be."""
    plain, calls = predictions.PredictionLog.add, 0

    def add(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if count == 0:
            die()
        plain(*args)
        if calls == count:
            die()

    predictions.PredictionLog.add = add  # type: ignore[method-assign]


def line(count: int, die: Callable[[], None]) -> None:
    """The `count`-th append is written in part."""
    plain, calls = predictions.PredictionLog.flush, 0

    def flush(log: Any) -> None:
        nonlocal calls
        data = b"".join(log._pending)
        calls += bool(data)
        if data and calls == count:
            log._file.seek(log._end)
            log._file.write(data[: 2 * len(data) // 3])
            log._file.flush()
            die()
        plain(log)

    predictions.PredictionLog.flush = flush  # type: ignore[method-assign]


def before(name: str, die: Callable[[], None]) -> None:
    """A file is written under its temporary name and not yet renamed."""
    _replacing(name, die, late=False)


def after(name: str, die: Callable[[], None]) -> None:
    """A file has just got its name."""
    _replacing(name, die, late=True)


def scoring(_: Any, die: Callable[[], None]) -> None:
    """All is answered, nothing scored."""
    plain = run.score_file

    def score_file(*args: Any, **kwargs: Any) -> Any:
        die()
        return plain(*args, **kwargs)

    run.score_file = score_file


MOMENTS = {moment.__name__: moment for moment in (answers, line, before, after, scoring)}


def _replacing(name: str, die: Callable[[], None], late: bool) -> None:
    plain = os.replace

    def replace(source: Any, target: Any, **kwargs: Any) -> None:
        if Path(target).name == name and not late:
            die()
        plain(source, target, **kwargs)
        if Path(target).name == name and late:
            die()

    os.replace = replace


def _child(argv: list[str], moment: list[Any] | None, number: int) -> None:
    sys.argv = ["medtune", *argv]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # Few rows shall make several groups, and several appends.
    core._LEAST_GROUP, core._BATCHES = 8, 1
    keyed_log.FLUSH_ROWS = 3
    if moment is not None:
        MOMENTS[moment[0]](moment[1], lambda: os.kill(os.getpid(), number))
    main.main()


def serve() -> None:
    for asked in map(json.loads, sys.stdin):
        child = os.fork()
        if child == 0:
            try:
                _child(asked["argv"], asked["moment"], asked["number"])
            except SystemExit as leaving:
                os._exit(leaving.code if isinstance(leaving.code, int) else 1)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C on the tests ends it by the end of its input
    serve()

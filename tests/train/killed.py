"""`killed.py PHASE COUNT VERB ...` is `medtune VERB ...`, killed by SIGKILL when PHASE comes for the COUNT-th time.

For moments that cannot be seen from outside: the process kills itself there, and no handler runs.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at(owner: Any, name: str, count: int, before: Callable[..., None] | None) -> None:
    """Kills at the count-th call of `owner.name`: after before(*arguments), or after the call itself."""
    plain, calls = getattr(owner, name), 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and before is not None:
            before(*args)
            _die()
        result = plain(*args, **kwargs)
        if calls == count:
            _die()
        return result

    setattr(owner, name, call)


def evaluation(count: int) -> None:
    """The held-out loss is computed and not written yet."""
    from medtune_jax.train import loop

    plain = loop.make_evaluate
    examiner = type("Examiner", (), {})()

    def make_evaluate(*args: Any) -> Any:
        examiner.evaluate = plain(*args)
        _at(examiner, "evaluate", count, None)
        return examiner.evaluate

    loop.make_evaluate = make_evaluate


def restoring(count: int) -> None:
    """Some of a checkpoint's three items are read."""
    from medtune_jax.train.saved import checkpoints

    _at(checkpoints, "restore_item", count, None)


def starting(count: int) -> None:
    """A file of the run folder is written under its temporary name."""
    from medtune_jax.train.saved import run_folder

    _at(run_folder, "write_whole", count, lambda path, text: path.with_name(path.name + ".tmp").write_text(text[:9]))


def cutting(count: int) -> None:
    """The lines of metrics.jsonl that will be written again have just been cut off."""
    from medtune_jax.train import loop

    _at(loop.MetricsLog, "__init__", count, None)


def removing(count: int) -> None:
    """Half of an old checkpoint is removed to make room."""
    from orbax.checkpoint._src.path.deleter import StandardCheckpointDeleter

    def remove_half(deleter: Any, step: int) -> None:
        shutil.rmtree(Path(deleter._directory) / str(step) / "params")

    _at(StandardCheckpointDeleter, "delete", count, remove_half)


def committing(count: int) -> None:
    """All of a checkpoint is written, and it does not have its name yet."""
    import orbax.checkpoint as ocp

    _at(ocp.CompositeCheckpointHandler, "finalize", count, None)


PHASES = (evaluation, restoring, starting, cutting, removing, committing)


if __name__ == "__main__":
    from medtune_jax.cli.main import main

    phase, times = sys.argv[1:3]
    next(kind for kind in PHASES if kind.__name__ == phase)(int(times))
    sys.argv[1:3] = []
    main()

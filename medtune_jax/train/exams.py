"""Examinations of a run, each at its own steps: the loss on held-out rows, and answers to some of them, scored.

A checkpoint of the same step is saved before them, so what a signal or a kill in one of them costs is made up for when
the run goes on: an examination whose line is not in metrics.jsonl is held then, and the lines are those of an
undisturbed run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medtune_jax.errors import UserError
from medtune_jax.model.llama import Params
from medtune_jax.train.records.metrics import MetricsLog, due
from medtune_jax.train.records.progress import Line, Progress
from medtune_jax.train.saved.best import Best


@dataclass(frozen=True)
class Exam:
    """Attributes:
    key: a key that its lines have and no others; every: updates between two of it, 0 = never.
    examine: (step, trained parameters) -> what its line says; None where there are no rows for it.
    """

    key: str
    every: int
    examine: Callable[[int, Params], Line] | None


class Exams:
    """The examinations of a run of `total` updates on the held-out rows of `split`."""

    def __init__(self, exams: list[Exam], split: str, total: int, log: MetricsLog, best: Best, progress: Progress):
        self._exams = [exam for exam in exams if exam.examine is not None]
        self._split, self._total, self._log, self._best, self._progress = split, total, log, best, progress

    def due(self, done: int) -> bool:
        """Whether any is held after `done` updates."""
        return any(due(done, exam.every, self._total) for exam in self._exams)

    def owed(self, done: int) -> bool:
        """Whether any is due after `done` updates that has no line yet."""
        return any(due(done, exam.every, self._total) and not self._log.line(done, exam.key) for exam in self._exams)

    def hold(self, done: int, params: Params, *, stopping: Callable[[], str], saved: Callable[[], str]) -> str:
        """Holds those that are due after `done` updates, keeps what scores best, and writes and says their lines.

        One that has its line is held again only where the line says that the best was to be kept and it was not: the
        process was killed before it was.

        Args:
          stopping: asked after each one; where it returns the name of a signal, no further one is held.
          saved: waits until the checkpoint under way is on disk, and says so; the best is written after it.

        Returns the name of the signal, "" for none.

        Raises:
          UserError: the loss on the held-out rows is not finite.
        """
        for exam in self._exams:
            if exam.examine is None or not due(done, exam.every, self._total):
                continue
            written = self._log.line(done, exam.key)
            if written is not None and not self._best.wants(written):
                continue
            try:
                line = {"step": done, "split": self._split, **exam.examine(done, params)}
            except UserError as error:  # it ends all processes at once: what is being written is to be there first
                self._best.settle()
                raise UserError(f"{error} {saved()}") from error
            if written is None:
                self._log.write(line)
            if self._best.wants(line):
                saved()
            better = self._best.offer(line, params)
            self._progress.say(_spoken(line) + ("; the best so far" if better else ""))
            came = stopping()
            if came:
                return came
        return ""


def _spoken(line: dict[str, Any]) -> str:
    """Returns what is said of a line."""
    if "eval_loss" in line:
        return f"step {line['step']:,}: evaluation loss {line['eval_loss']:.4f}"
    told = (f"{name} {one['metric']} {one['value']:.3f} of {one['n']}" for name, one in line["samples"].items())
    return f"step {line['step']:,}: samples: {', '.join(told)}"

"""What a run tells of itself: metrics.jsonl, the boards that read along, and how the metrics of updates get there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from medtune_jax.errors import UserError
from medtune_jax.processes import everyones, is_first
from medtune_jax.train.inputs import Inputs
from medtune_jax.train.records.boards import Board
from medtune_jax.train.records.progress import Line, Progress
from medtune_jax.train.records.throughput import device_memory
from medtune_jax.train.saved.run_folder import write_whole


def read_lines(path: Path) -> list[Line]:
    """Returns the lines of metrics.jsonl; a torn last line (the writer was killed) is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").split("\n")[:-1]:
        try:
            lines.append(json.loads(text))
        except ValueError:
            raise UserError(f"{path} is damaged: '{text[:60]}' is not JSON. Remove that line.") from None
    return lines


class MetricsLog:
    """metrics.jsonl of one run, and its boards.

    Lines of training hold step (updates done), loss, ...; lines of evaluation hold step, split and eval_loss. What
    measures time or memory, and so differs between equal runs, has second, mfu, goodput or memory in its name.
    """

    def __init__(self, workdir: Path, *, step: int, boards: Sequence[Board] = ()):
        """Opens the run's log at `step`: lines of later steps, which a restored run will write again, are cut off.

        Of several processes the first writes the file.
        """
        self.path = workdir / "metrics.jsonl"
        read = read_lines(self.path)
        at_step = [line for line in read if line["step"] == step]
        # What is examined at once depends on them; another machine may see the file as it was a while ago.
        self.lines = [line for line in read if line["step"] < step] + everyones("metrics", at_step)[0]
        if is_first():
            write_whole(self.path, "".join(_text(line) for line in self.lines))
        self._file = (self.path if is_first() else Path(os.devnull)).open("a", encoding="utf-8")
        self._boards = boards

    def write(self, line: Line) -> None:
        """Appends a line and hands it to the operating system; its floats go to the boards as "<split>/<name>"."""
        self.lines.append(line)
        self._file.write(_text(line))
        self._file.flush()
        group = line.get("split", "train")
        scalars = {f"{group}/{name}": value for name, value in line.items() if isinstance(value, float)}
        for board in self._boards:
            board.write(line["step"], scalars)

    def sync(self) -> None:
        """Returns when the lines are on disk: before a checkpoint is saved, whose run will not write them again."""
        if is_first():
            os.fsync(self._file.fileno())

    def line(self, step: int, key: str) -> Line | None:
        """Returns the line of `step` that has `key`, None where there is none."""
        return next((line for line in self.lines if line["step"] == step and key in line), None)

    def last(self, key: str) -> float | None:
        """Returns the newest value of `key`, None where no line has it."""
        return next((line[key] for line in reversed(self.lines) if key in line), None)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        for board in self._boards:
            board.close()


def _text(line: Line) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


class Recorder:
    """Takes the metrics of each update while they are still being computed, and reads them one update late.

    Attributes:
      ends: why the run is to end, as the first bad step that ends it was told (train/bad_step.py); "" before.
    """

    def __init__(
        self, every: int, inputs: Inputs, log: MetricsLog, progress: Progress, bad_step: Callable[[int, Line], str]
    ):
        """`every`: updates between lines (a skipped one has its own); `bad_step`: told of each bad one."""
        self.ends = ""
        self._every, self._inputs, self._log, self._progress, self._bad_step = every, inputs, log, progress, bad_step
        self._pending: tuple[int, dict[str, jax.Array]] | None = None

    def push(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """Records the update before; keeps this one's metrics, `done` counting it."""
        self.flush()
        self._pending = (done, metrics)

    def flush(self) -> None:
        """Records what is kept, waiting for it."""
        if self._pending is None:
            return
        done, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        skipped, in_a_row = values.pop("skipped"), values.pop("skipped_in_a_row")
        if skipped:
            values |= {"skipped": skipped, "skipped_in_a_row": in_a_row}
            told = self._bad_step(done, values)
            self.ends = self.ends or told
        padded, plain, loss = tokens = self._inputs.data.tokens_in(done - 1)
        self._progress.count(tokens)
        if skipped or due(done, self._every, self._inputs.data.total_steps):
            line = {"step": done, "epoch": self._inputs.data.locate(done - 1)[0]}
            line |= {name: value for name, value in values.items() if math.isfinite(value)}  # JSON has no NaN
            line |= {"padded_tokens": padded, "tokens": plain, "loss_tokens": loss, **self._progress.rates(done)}
            memory = device_memory()
            if memory is not None:
                line["device_memory_bytes"] = memory
            self._log.write(line)
            self._progress.show(line)


def due(done: int, every: int, total: int) -> bool:
    """Whether what is done every `every` updates (0 = never), and after the last, is due after `done` updates."""
    return every > 0 and (done % every == 0 or done == total)

"""What a run tells of itself: metrics.jsonl, TensorBoard, loss.png, and the progress line."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from medtune_jax.errors import UserError
from medtune_jax.train.inputs import Inputs

Line = dict[str, Any]
_ROWS_NAMED = 64  # in an error message


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
    """metrics.jsonl and TensorBoard of one run.

    Lines of training hold step (updates done), loss, ...; lines of evaluation hold step, split and eval_loss.
    """

    def __init__(self, workdir: Path, *, step: int, tensorboard: bool):
        """Opens the run's log at `step`: lines of later steps, which a restored run will write again, are cut off."""
        self.path = workdir / "metrics.jsonl"
        self.lines = [line for line in read_lines(self.path) if line["step"] <= step]
        kept = self.path.with_suffix(".jsonl.tmp")
        kept.write_text("".join(_text(line) for line in self.lines), encoding="utf-8")
        kept.replace(self.path)  # at once: killed here, nothing is lost
        self._file = self.path.open("a", encoding="utf-8")
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, line: Line) -> None:
        """Appends a line and hands it to the operating system."""
        self.lines.append(line)
        self._file.write(_text(line))
        self._file.flush()
        if self._board is not None:
            group = line.get("split", "train")
            for name, value in line.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{group}/{name}", value, line["step"])

    def last(self, key: str) -> float | None:
        """Returns the newest value of `key`, None where no line has it."""
        return next((line[key] for line in reversed(self.lines) if key in line), None)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _text(line: Line) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def plot(lines: list[Line], path: Path) -> None:
    """Draws training and evaluation loss over steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "evaluation", "o-")):
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats per loss token)")
    axes.grid(alpha=0.3)
    if lines:
        axes.legend()
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    plt.close(figure)
    temporary.replace(path)


class Progress:
    """The progress line on stderr, and the clock behind tokens per second. The clock stands until `resume`."""

    def __init__(self, step: int, total: int):
        self._total = total
        self._live = sys.stderr.isatty()
        self._since: float | None = None
        self._seconds = 0.0
        self._tokens = (0, 0, 0)
        self._mark = (step, 0.0, (0, 0, 0))  # at the last call of `rates`

    def pause(self) -> None:
        """Stops the clock, for work that is not training."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def resume(self) -> None:
        self.pause()
        self._since = time.perf_counter()

    def count(self, tokens: tuple[int, int, int]) -> None:
        """Adds a step's (padded, non-padding, loss) tokens."""
        self._tokens = _three(a + b for a, b in zip(self._tokens, tokens, strict=True))

    def rates(self, step: int) -> Line:
        """Returns tokens per second since the last call, and the seconds left at this pace."""
        self.resume()
        before, seconds, tokens = self._mark
        self._mark = (step, self._seconds, self._tokens)
        spent = self._seconds - seconds
        new = _three(now - then for now, then in zip(self._tokens, tokens, strict=True))
        return {**_per_second(new, spent), "seconds_left": (self._total - step) * spent / max(1, step - before)}

    def totals(self) -> Line:
        """Returns tokens per second since the beginning."""
        return _per_second(self._tokens, self._seconds)

    def show(self, line: Line) -> None:
        """Prints a line of training: overwritten on a terminal, else one per call."""
        left = round(line["seconds_left"])
        text = (
            f"step {line['step']:,}/{self._total:,}  loss {line['loss']:.4f}  "
            f"tokens/s {line['padded_tokens_per_second']:,.0f} padded, {line['tokens_per_second']:,.0f} non-padding, "
            f"{line['loss_tokens_per_second']:,.0f} loss  ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        )
        self._print(text, end="" if self._live else "\n")

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._print(text, end="\n")

    def _print(self, text: str, end: str) -> None:
        print(f"\r\x1b[K{text}" if self._live else text, end=end, file=sys.stderr, flush=True)


class Recorder:
    """Takes the metrics of each update while they are still being computed, and reads them one update late."""

    def __init__(
        self, every: int, inputs: Inputs, log: MetricsLog, progress: Progress, saved: Callable[[], Sequence[int]]
    ):
        """`every`: updates between lines; `saved` tells which checkpoints there are."""
        self._every, self._inputs, self._log, self._progress, self._saved = every, inputs, log, progress, saved
        self._pending: tuple[int, dict[str, jax.Array]] | None = None

    def push(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """Records the update before; keeps this one's metrics, `done` counting it."""
        self.flush()
        self._pending = (done, metrics)

    def flush(self) -> None:
        """Records what is kept, waiting for it.

        Raises:
          UserError: its loss or gradient is not finite.
        """
        if self._pending is None:
            return
        done, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not all(math.isfinite(values[name]) for name in ("loss", "weighted_loss", "grad_norm")):
            raise UserError(self._not_finite(done, values))
        padded, plain, loss = tokens = self._inputs.data.tokens_in(done - 1)
        self._progress.count(tokens)
        if due(done, self._every, self._inputs.data.total_steps):
            line = {"step": done, "epoch": self._inputs.data.locate(done - 1)[0], **values}
            line |= {"padded_tokens": padded, "tokens": plain, "loss_tokens": loss, **self._progress.rates(done)}
            self._log.write(line)
            self._progress.show(line)

    def _not_finite(self, done: int, values: Line) -> str:
        rows, ids = self._inputs.data.rows_in(done - 1), self._inputs.row_ids
        named = [f"{row} ({ids[row]})" if ids[row] else str(row) for row in rows[:_ROWS_NAMED]]
        more = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
        saved = self._saved()
        kept = f"Checkpoint {saved[-1]} was saved before it." if saved else "No checkpoint was saved before it."
        return (
            f"Step {done}: the loss ({values['loss']}) or the norm of its gradient ({values['grad_norm']}) is not "
            f"finite. {kept} Rows of this step (index in the training rows, and id): {', '.join(named)}{more}. Look at "
            "these rows, or lower --config.optimizer.learning_rate and train in another --workdir."
        )


def due(done: int, every: int, total: int) -> bool:
    """Whether what is done every `every` updates (0 = never), and after the last, is due after `done` updates."""
    return every > 0 and (done % every == 0 or done == total)


def _three(numbers: Iterable[int]) -> tuple[int, int, int]:
    first, second, third = numbers
    return first, second, third


def _per_second(tokens: tuple[int, int, int], seconds: float) -> Line:
    names = ("padded_tokens_per_second", "tokens_per_second", "loss_tokens_per_second")
    return {name: count / seconds if seconds else 0.0 for name, count in zip(names, tokens, strict=True)}

"""What a run tells of itself: metrics.jsonl, TensorBoard, loss.png, and the progress line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from medtune_jax.errors import UserError

Line = dict[str, Any]


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
        self.path.write_text("".join(_text(line) for line in self.lines), encoding="utf-8")
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

    def close(self) -> None:
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
    """The progress line on stderr, and the clock behind tokens per second (training only)."""

    def __init__(self, step: int, total: int):
        self._total = total
        self._live = sys.stderr.isatty()
        self._since = time.perf_counter()
        self._mark = (step, 0.0, (0, 0, 0))
        self.seconds = 0.0
        self.tokens = (0, 0, 0)

    def pause(self) -> None:
        """Stops the clock, for work that is not training."""
        self.seconds += time.perf_counter() - self._since

    def resume(self) -> None:
        self._since = time.perf_counter()

    def rates(self, step: int) -> dict[str, float]:
        """Returns tokens per second (padded, non-padding, loss) since the last call, and the seconds left."""
        self.pause()
        self.resume()
        before, seconds, tokens = self._mark
        spent = max(self.seconds - seconds, 1e-9)
        padded, plain, loss = ((now - then) / spent for now, then in zip(self.tokens, tokens, strict=True))
        self._mark = (step, self.seconds, self.tokens)
        left = (self._total - step) * spent / max(1, step - before)
        return {
            "padded_tokens_per_second": padded,
            "tokens_per_second": plain,
            "loss_tokens_per_second": loss,
            "seconds_left": left,
        }

    def count(self, tokens: tuple[int, int, int]) -> None:
        """Adds a step's (padded, non-padding, loss) tokens."""
        self.tokens = tuple(a + b for a, b in zip(self.tokens, tokens, strict=True))  # type: ignore[assignment]

    def show(self, line: Line) -> None:
        """Prints a line of training: overwritten on a terminal, else one per call."""
        left = int(line["seconds_left"])
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

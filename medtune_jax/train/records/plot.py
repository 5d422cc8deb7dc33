"""loss.png: the losses of a run, and what belongs beside them, over its steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medtune_jax.processes import is_first
from medtune_jax.train.records.progress import Line

_SMOOTHED_OVER = 0.02  # share of the lines that the smooth curve averages, backwards; a curve of few lines has none
_SMOOTHED_FROM = 100  # lines


def plot(lines: list[Line], path: Path) -> None:
    """Draws training and evaluation loss; below, the learning rate, and the scores of answers where there are any.

    Updates that were skipped are marked at the foot of the loss. Of several processes the first draws.
    """
    if not is_first():
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scores = _scores(lines)
    heights = (3, 1, 1.5) if scores else (3, 1)
    figure, rows = plt.subplots(
        len(heights), 1, sharex=True, figsize=(8, 1.5 * sum(heights)), height_ratios=heights, layout="constrained"
    )
    _draw_losses(rows[0], lines)
    rows[1].plot(*_points(lines, "learning_rate"), linewidth=1, color="tab:gray")
    rows[1].set(ylabel="learning rate")
    rows[1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    for name in scores:
        rows[2].plot(*_points(lines, name), "o-", label=name.removeprefix("samples_"), linewidth=1, markersize=3)
    if scores:
        rows[2].set(ylabel="score of answers")
        rows[2].legend(fontsize="small")
    rows[-1].set(xlabel="step")
    for axes in rows:
        axes.grid(alpha=0.3)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    plt.close(figure)
    temporary.replace(path)


def _draw_losses(axes: Any, lines: list[Line]) -> None:
    steps, losses = _points([line for line in lines if not line.get("skipped")], "loss")
    window = round(len(losses) * _SMOOTHED_OVER) if len(losses) >= _SMOOTHED_FROM else 1
    if window > 1:
        axes.plot(steps, losses, linewidth=0.6, alpha=0.35, color="tab:blue")
        before = [losses[max(0, end - window) : end] for end in range(1, len(losses) + 1)]
        losses = [sum(part) / len(part) for part in before]
    told = "training" if window == 1 else f"training, mean of {window} lines"
    if steps:
        axes.plot(steps, losses, linewidth=1.2, color="tab:blue", label=told)
    held_out = _points(lines, "eval_loss")
    if held_out[0]:
        axes.plot(*held_out, "o-", linewidth=1.2, markersize=4, color="tab:orange", label="evaluation")
    skipped, _ = _points([line for line in lines if line.get("skipped")], "skipped")
    if skipped:
        foot = axes.get_xaxis_transform()  # height as a share of the axes
        axes.plot(skipped, [0.02] * len(skipped), "x", color="tab:red", transform=foot, label="skipped updates")
    axes.set(ylabel="loss (nats per loss token)")
    if steps or held_out[0] or skipped:
        axes.legend()


def _points(lines: Sequence[Line], key: str) -> tuple[list[int], list[float]]:
    """Returns the steps and values of the lines that have `key`."""
    found = [(line["step"], line[key]) for line in lines if key in line]
    return [step for step, _ in found], [value for _, value in found]


def _scores(lines: Sequence[Line]) -> list[str]:
    """Returns the names of the scores of generated answers, in order of appearance."""
    return list(dict.fromkeys(name for line in lines for name in line if name.startswith("samples_")))

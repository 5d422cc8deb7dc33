"""The clock of a run: tokens per second, utilisation, goodput, time left; and the line that shows them on stderr."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from medtune_jax.processes import is_first
from medtune_jax.train.records.throughput import Work

Line = dict[str, Any]
Tokens = tuple[int, int, int]  # padded, non-padding, loss

_KINDS = ("padded_tokens", "tokens", "loss_tokens")


@dataclass(frozen=True)
class Spent:
    """Seconds that a run has taken before this call: doing updates that it still has, and in all."""

    updating: float = 0.0
    running: float = 0.0


def spent_before(lines: Iterable[Line], step: int) -> Spent:
    """Returns what the lines of metrics.jsonl tell of the time before a run goes on after `step`.

    Updates after `step` are lost and will be done again: their time counts as running only. What a killed process did
    after its last line is not known and not counted, nor is the time in which no process ran.
    """
    clocked = [line for line in lines if "running_seconds" in line]
    kept = [line["updating_seconds"] for line in clocked if line["step"] <= step]
    return Spent(max(kept, default=0.0), max((line["running_seconds"] for line in clocked), default=0.0))


class Progress:
    """The clock behind the figures, which stands until `resume`, and the progress line.

    Updates are what `resume` and `pause` enclose: compilation, evaluation and saving lie outside.
    """

    def __init__(
        self,
        step: int,
        total: int,
        *,
        work: Work | None = None,
        began: float | None = None,
        before: Spent | None = None,
    ):
        """`step` of `total` updates are done; `began`: when this call began, by time.perf_counter (default: now)."""
        self._total, self._work, self._before = total, work, before or Spent()
        self._live = sys.stderr.isatty()
        self._began = time.perf_counter() if began is None else began
        self._since: float | None = None
        self._first_resumed: float | None = None
        self._seconds = 0.0
        self._tokens: Tokens = (0, 0, 0)
        self._mark: tuple[int, float, Tokens] = (step, 0.0, (0, 0, 0))  # at the last call of `rates`

    def pause(self) -> None:
        """Stops the clock, for work that is not training."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def resume(self) -> None:
        self.pause()
        self._since = time.perf_counter()
        if self._first_resumed is None:
            self._first_resumed = self._since

    def count(self, tokens: Tokens) -> None:
        """Adds a step's tokens."""
        self._tokens = _three(a + b for a, b in zip(self._tokens, tokens, strict=True))

    def rates(self, step: int) -> Line:
        """Returns the figures since the last call, and those of the run.

        step_seconds; {padded_,,loss_}tokens_per_second, of all devices, and the same ..._per_device; mfu, where the
        device's peak is known (train/records/throughput.py); updating_seconds and running_seconds of the whole run, its
        resumptions included, and goodput, the former over the latter; seconds_left at this pace, if evaluation, saving
        and the rest take the share of time that they have had in this call.
        """
        self.resume()
        before, seconds, tokens = self._mark
        self._mark = (step, self._seconds, self._tokens)
        spent, steps = self._seconds - seconds, max(1, step - before)
        new = _three(now - then for now, then in zip(self._tokens, tokens, strict=True))
        line = {"step_seconds": spent / steps, **self._per_second(new, spent), **self._clock()}
        assert self._since is not None and self._first_resumed is not None
        whole = (self._since - self._first_resumed) / self._seconds if self._seconds else 1.0
        return {**line, "seconds_left": (self._total - step) * line["step_seconds"] * whole}

    def totals(self) -> Line:
        """Returns the same figures of this call as a whole; mfu is None where it is not known."""
        line = {"mfu": None, **self._per_second(self._tokens, self._seconds)}
        return {**line, "goodput": self._clock()["goodput"]}

    def show(self, line: Line) -> None:
        """Prints a line of training: overwritten on a terminal, cut to its width; elsewhere one per call."""
        left = round(line["seconds_left"])
        loss = "skipped" if line.get("skipped") else f"loss {line['loss']:.4f}"
        parts = [
            f"step {line['step']:,}/{self._total:,}",
            loss,
            f"ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}",
            f"{line['step_seconds']:.3g} s/step",
            f"tokens/s {line['padded_tokens_per_second']:,.0f} padded, {line['tokens_per_second']:,.0f} non-padding, "
            f"{line['loss_tokens_per_second']:,.0f} loss",
        ]
        if "mfu" in line:
            parts.append(f"MFU {line['mfu']:.1%}")
        if "device_memory_bytes" in line:
            parts.append(f"device memory {line['device_memory_bytes'] / 2**30:.1f} GiB")
        parts.append(f"goodput {line['goodput']:.0%}")
        text = "  ".join(parts)
        if self._live:
            text = text[: shutil.get_terminal_size((10**4, 24)).columns - 1]
        self._print(text, end="" if self._live else "\n")

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._print(text, end="\n")

    def _per_second(self, tokens: Tokens, seconds: float) -> Line:
        rates = [count / seconds if seconds else 0.0 for count in tokens]
        line = {f"{kind}_per_second": rate for kind, rate in zip(_KINDS, rates, strict=True)}
        if self._work is not None:
            devices = self._work.devices
            line |= {f"{kind}_per_second_per_device": r / devices for kind, r in zip(_KINDS, rates, strict=True)}
            mfu = self._work.mfu(rates[0])
            if mfu is not None:
                line["mfu"] = mfu
        return line

    def _clock(self) -> Line:
        now = time.perf_counter()
        updating = self._before.updating + self._seconds + (now - self._since if self._since is not None else 0.0)
        running = self._before.running + now - self._began
        goodput = updating / running if running else 0.0
        return {"updating_seconds": updating, "running_seconds": running, "goodput": goodput}

    def _print(self, text: str, end: str) -> None:
        if not is_first():
            return
        try:
            print(f"\r\x1b[K{text}" if self._live else text, end=end, file=sys.stderr, flush=True)
        except OSError:  # the terminal was closed, or what read a pipe ended: the run goes on, and metrics.jsonl tells
            self._live = False
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _three(numbers: Iterable[int]) -> Tokens:
    first, second, third = numbers
    return first, second, third

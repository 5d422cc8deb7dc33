"""A window of updates under JAX's profiler: a trace for TensorBoard (XProf) or Perfetto in <workdir>/profile/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from medtune_jax import processes
from medtune_jax.config import LogConfig
from medtune_jax.train.records.progress import Progress


class ProfileWindow:
    """Traces log.profile_steps updates of the first process. Use as a context manager: leaving it ends a trace.

    The host waits for the device once, where the trace ends, so that its last update is in it whole.
    """

    def __init__(self, log: LogConfig, workdir: Path, progress: Progress):
        """The first log.profile_start updates of the run's call are left out: they warm up."""
        steps = log.profile_steps if processes.is_first() else 0
        self._begin, self._end = (log.profile_start, log.profile_start + steps) if steps else (-1, -1)
        self._folder, self._progress = workdir / "profile", progress
        self._done, self._tracing = 0, False

    def __enter__(self) -> ProfileWindow:
        return self

    def before_update(self) -> None:
        """Begins the trace where the next update is its first."""
        if self._done == self._begin:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def after_update(self, outputs: Any) -> None:
        """Ends the trace where that was its last update, once its `outputs` are computed."""
        self._done += 1
        if self._done == self._end:
            jax.block_until_ready(outputs)
            self._stop()

    def __exit__(self, *_: object) -> None:
        if self._tracing:  # the run is shorter than the window, or was stopped in it
            self._stop()

    def _stop(self) -> None:
        self._progress.pause()  # writing the trace is not training
        jax.profiler.stop_trace()
        self._tracing = False
        self._progress.say(f"Updates {self._begin + 1} to {self._done} of this call are traced: {self._folder}")
        self._progress.resume()

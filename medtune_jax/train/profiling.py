"""A window of updates under JAX's profiler: a trace for TensorBoard or Perfetto in <workdir>/profile/."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax

from medtune_jax.config import LogConfig

_log = logging.getLogger(__name__)


class ProfileWindow:
    """Traces log.profile_steps updates, the first process's only. Use as a context manager: leaving it ends a trace.

    The host waits for the device twice: where the trace ends, so that the last update is in it whole, and nowhere else
    when nothing is traced.
    """

    def __init__(self, log: LogConfig, workdir: Path):
        """The first `log.profile_start` updates after this call are left out: they warm up."""
        steps = log.profile_steps if jax.process_index() == 0 else 0
        self._begin, self._end = (log.profile_start, log.profile_start + steps) if steps else (-1, -1)
        self._folder, self._done, self._tracing = workdir / "profile", 0, False

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
        jax.profiler.stop_trace()
        self._tracing = False
        _log.warning("Traced updates up to %d of this call: %s", self._done, self._folder)

"""SIGTERM and Ctrl-C: the first asks the run to stop after its step, the second ends the process at once.

Of several processes all stop after the same step, whichever got the signal. JAX's preemption service sees to that: it
takes SIGTERM over, tells the other processes, and agrees with them, on threads of its own, on a step that none has
reached. Asking whether it is this one costs no device and no network. (A second SIGTERM then does nothing.)
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from medtune_jax.errors import EXIT_INTERRUPTED

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STDERR = 2  # written to directly: print is not safe in a signal handler


class StopRequest:
    """Listens for the signals while it is entered (in the main thread only).

    Attributes:
      requested: the name of the signal that came, "" before.
    """

    def __init__(self) -> None:
        self.requested = ""
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            ours = _SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
            self._previous = {number: signal.signal(number, self._handle) for number in ours}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def after(self, step: int) -> str:
        """Returns the name of the signal for which the run is to stop after `step`, "" for none.

        Of several processes each asks after every step, and all are told the same.
        """
        if jax.process_count() == 1:
            return self.requested
        return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else ""

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.requested:
            os.write(_STDERR, f"\n{name}, the second signal: ended at once.\n".encode())
            os._exit(EXIT_INTERRUPTED)
        self.requested = name
        os.write(_STDERR, f"\n{name}: saving after this step. Once more ends at once.\n".encode())
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # Ctrl-C: for the preemption service

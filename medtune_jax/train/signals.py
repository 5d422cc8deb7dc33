"""SIGTERM and Ctrl-C: the first asks the run to stop after its step, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

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
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.requested:
            os.write(_STDERR, f"\n{name}, the second signal: ended at once.\n".encode())
            os._exit(EXIT_INTERRUPTED)
        self.requested = name
        os.write(_STDERR, f"\n{name}: saving after this step. Once more ends at once.\n".encode())

"""SIGTERM and Ctrl-C: the first asks the run to stop after its step, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

from medtune_jax.errors import EXIT_INTERRUPTED

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """True once a signal has come. Listens while it is entered, in the main thread only."""

    def __init__(self) -> None:
        self._name = ""

    def __bool__(self) -> bool:
        return bool(self._name)

    @property
    def name(self) -> str:
        return self._name

    def __enter__(self) -> StopRequest:
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self:
            os.write(sys.__stderr__.fileno(), f"\n{name} again: ended at once.\n".encode())
            os._exit(EXIT_INTERRUPTED)
        self._name = name
        os.write(sys.__stderr__.fileno(), f"\n{name}: saving after this step; again to end at once.\n".encode())

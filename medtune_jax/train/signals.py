"""SIGTERM, Ctrl-C, a closed terminal: the first asks the run to stop after its step, a second ends it at once.

Before the first update there is nothing to save: the run stops at the next point between its phases (read, load,
compile). From then on, of several processes all stop after the same step, whichever got the signal. JAX's preemption
service sees to that: it has SIGTERM, tells the other processes, and agrees with them, on threads of its own, on a step
that none has reached. Asking whether it is this one costs no device and no network. (A second SIGTERM then does
nothing.)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from medtune_jax.errors import EXIT_INTERRUPTED, Interrupted
from medtune_jax.processes import everyones

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STDERR = 2  # written to directly: print is not safe in a signal handler


class StopRequest:
    """Listens for the signals while it is entered (in the main thread only).

    Attributes:
      requested: the name of the signal that came, "" before.
    """

    def __init__(self) -> None:
        self.requested = ""
        self._updating = False
        self._asked = 0
        self._previous: dict[signal.Signals, Any] = {}
        self._service: int | None = None  # the preemption service's handler of SIGTERM, while ours stands in its place

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            if jax.process_count() > 1:
                self._service = _set_handler(signal.SIGTERM, int(signal.SIG_DFL))
            ours = [number for number in _SIGNALS if number != signal.SIGHUP or _heeds_hangup()]
            self._previous = {number: signal.signal(number, self._handle) for number in ours}
        return self

    def __exit__(self, *_: object) -> None:
        self._hand_over()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def before_updates(self) -> None:
        """Raises Interrupted where a signal came to any process; all call it, between the phases before an update."""
        came = [name for name in everyones("stop", self.requested) if name]
        if came:
            raise Interrupted(
                f"{came[0]} before the first update: nothing to save yet. To go on, run the same command again."
            )

    def updates_begin(self) -> None:
        """As before_updates; from here on `asked` is called."""
        if jax.process_count() > 1:
            multihost_utils.reached_preemption_sync_point(self._asked)  # what is agreed on is to be beyond this one
        self.before_updates()
        self._updating = True
        self._hand_over()

    def asked(self) -> str:
        """Returns the name of the signal for which the run is to stop now, "" for none.

        Of several processes each calls it at the same points, after every step and every examination, and all are told
        the same: the preemption service agrees on one of these points, by its number.
        """
        if jax.process_count() == 1:
            return self.requested
        self._asked += 1
        return "SIGTERM" if multihost_utils.reached_preemption_sync_point(self._asked) else ""

    def _hand_over(self) -> None:
        """Gives SIGTERM, also one that just came, back to the preemption service."""
        if self._service is not None:
            _set_handler(signal.SIGTERM, self._service)
            self._service = None
            self._previous.pop(signal.SIGTERM, None)
            if self.requested and self._updating:
                os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.requested and number == signal.SIGHUP:
            return  # a terminal that closes sends it twice, once through the shell
        if self.requested:
            _say(f"{name}, the second signal: ended at once.")
            os._exit(EXIT_INTERRUPTED)
        self.requested = name
        does = "saving after this step" if self._updating else "stopping before the first update"
        _say(f"{name}: {does}. Once more ends at once.")
        if self._updating and jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # Ctrl-C: for the preemption service


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be what went
        os.write(_STDERR, f"\n{text}\n".encode())


def _heeds_hangup() -> bool:
    """Whether this process is to notice that its terminal closed: not under nohup."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def _set_handler(number: int, handler: int) -> int:
    """Sets what C does at a signal, which Python cannot where a library set it; returns what it did before."""
    c_signal = ctypes.CDLL(None).signal
    c_signal.restype, c_signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    return int(c_signal(number, handler) or 0)

"""Several processes as one run: how they find one another, who speaks, and how all end when one does.

Each process runs the same program on its own devices; JAX's coordination service, in the first one, joins them. Beside
the heartbeats of that service, which end a process by abort(), a thread of each process

- writes a sign of life to the service every sixth of the timeout; the first process reads them all. One that is silent
  is lost: the others end within the timeout, whatever collective they wait in, with exit status 75 (resumable);
- waits for the note by which a process that must end (a user's mistake, an error of its own) ends all with its status.

The first process speaks for all; only where it is itself the one that was lost, each of the others does.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import logging
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
from jax._src import distributed  # its client has no public name

from medtune_jax.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USER_ERROR, Interrupted, Stopped, UserError
from medtune_jax.launchers import connected_pod, launcher, not_found, owns_visible_gpus, placed

TIMEOUT = 60  # seconds
_END = "medtune/end"
_BEATS = "medtune/beat/"
_FIRST_SPEAKS = 2.0  # seconds in which the first process may tell of a mistake that all see
_GRACE_MS = 5000  # the first process, which holds the service, waits so long for others to have read the note
_STDERR = 2
_log = logging.getLogger(__name__)
_barriers, _gatherings = itertools.count(), itertools.count()
_watch: _Watch | None = None


class Note(NamedTuple):
    """Why all end.

    Attributes:
      status: of every process; text: what the first says; lost: processes that no longer answer.
    """

    status: int
    text: str
    lost: list[int]


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return jax.process_index() == 0


def barrier(name: str, timeout: float = 600.0) -> None:
    """Returns when all processes are here; no device takes part. To be called in the same order by all.

    Raises:
      JaxRuntimeError: not all came within `timeout` seconds.
    """
    client = distributed.global_state.client
    if client is not None and jax.process_count() > 1:
        client.wait_at_barrier(f"medtune/{next(_barriers)}/{name}", int(1000 * timeout))


def everyones(name: str, value: Any, timeout: float = 3600.0) -> list[Any]:
    """Returns what each process gives (JSON values), by its index; no device takes part.

    To be called in the same order by all; returns when all have.

    Raises:
      JaxRuntimeError: not all came within `timeout` seconds.
    """
    client = distributed.global_state.client
    if client is None or jax.process_count() == 1:
        return [value]
    folder = f"medtune/{next(_gatherings)}/{name}/"
    client.key_value_set(f"{folder}{jax.process_index()}", json.dumps(value))
    barrier(name, timeout)
    told = {int(key.rsplit("/", 1)[1]): text for key, text in client.key_value_dir_get(folder)}
    return [json.loads(told[index]) for index in range(jax.process_count())]


@contextmanager
def joined(
    name: str,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = TIMEOUT,
    join_timeout: int = 300,
) -> Iterator[None]:
    """Joins the processes of a run, before anything touches a device, and ends them together.

    Without the three that place a process, what launched it is asked: TPU metadata, SLURM, Open MPI, Kubernetes. Where
    nothing did, it is alone and nothing happens. Of several all but the first are silent inside.

    Args:
      name: of the command, before its messages.
      coordinator: HOST:PORT of the first process; num_processes; process_id: 0 = the first.
      timeout: seconds from the death of a process to the end of the others.
      join_timeout: seconds in which all must have come.

    Raises:
      UserError: some of the three are missing or out of range, or the processes do not find one another.
    """
    global _watch
    found = placed(coordinator, num_processes, process_id)
    if found is None:
        yield
        return
    on_abort = _Abort(name, join_timeout)
    try:
        jax.distributed.initialize(
            **found,
            initialization_timeout=join_timeout,
            heartbeat_timeout_seconds=2 * timeout,  # our own thread is to be first: the service aborts
            shutdown_timeout_seconds=timeout,
        )
    except (RuntimeError, ValueError) as error:
        on_abort.restore()
        if not launcher() and not connected_pod() and not found:  # TPU chips, but no metadata of workers
            yield
            return
        raise not_found(error) from error
    if owns_visible_gpus():
        jax.config.update("jax_cuda_visible_devices", "all")
        jax.config.update("jax_rocm_visible_devices", "all")
    state = distributed.global_state
    _log.info(
        "Process %d of %d on %s: %d of %d devices; coordinator %s. If a process dies, the others end within %d s.",
        *(state.process_id, state.num_processes, socket.gethostname(), jax.local_device_count(), jax.device_count()),
        *(state.coordinator_address, timeout),
    )
    if state.num_processes == 1:
        on_abort.restore()
        yield
        return
    watch = on_abort.watch = _watch = _Watch(name, timeout)
    with _silent() if state.process_id else nullcontext():  # what all see is told once
        try:
            yield
            barrier("finished", timeout=timeout * 10)
        except BaseException as error:
            watch.end(error)
    watch.stop()
    _watch = None
    jax.distributed.shutdown()
    on_abort.restore()


@contextmanager
def _silent() -> Iterator[None]:
    """Our log says errors only, and stdout nothing."""
    log = logging.getLogger("medtune_jax")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        log.setLevel(level)


@contextmanager
def ending_together(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """An error inside ends all processes at once, before this one leaves blocks in which it would wait for others.

    how_to_go_on: what is safe and how the run is resumed, for the message where a process is lost. Alone, it does
    nothing, nor with `Interrupted`, which all raise after the same step.
    """
    watch = _watch
    if watch is not None:
        watch.how_to_go_on = how_to_go_on
    try:
        yield
    except Interrupted:
        raise
    except BaseException as error:
        if watch is None:
            raise
        watch.end(error)


class _Watch:
    """The thread that gives signs of life, and ends this process when the note is there."""

    def __init__(self, name: str, timeout: float):
        self._name, self._timeout, self._interval = name, timeout, timeout / 6
        self._client: Any = distributed.global_state.client
        self._index, self._count = jax.process_index(), jax.process_count()
        self._stopped = threading.Event()
        self._noted = threading.Event()
        self._lock = threading.Lock()
        self.leaving: Note | None = None  # set by the thread that ends this process
        self.contact = time.monotonic()  # of the last answer of the coordination service
        self.how_to_go_on: Callable[[], str] = lambda: "To go on, start all processes again."
        threading.Thread(target=self._run, name="processes", daemon=True).start()

    @property
    def silent(self) -> bool:
        """Whether the coordination service has not answered for a while."""
        return time.monotonic() - self.contact > 2 * self._interval

    def stop(self) -> None:
        self._stopped.set()

    def end(self, error: BaseException) -> NoReturn:
        """Ends all processes for an error of this one; where it comes of another's death, that is what is told."""
        if isinstance(error, UserError):
            note = Note(EXIT_USER_ERROR, str(error), [])
        elif isinstance(error, Interrupted | KeyboardInterrupt):
            status = EXIT_FAILURE if isinstance(error, Stopped) else EXIT_INTERRUPTED
            note = Note(status, f"interrupted. {error}".rstrip(), [])
        else:
            if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
                self._noted.wait(self._timeout)  # a collective that failed: the watch will tell who is lost
            os.write(_STDERR, "".join(traceback.format_exception(error)).encode())
            note = Note(EXIT_FAILURE, f"{type(error).__name__}: {error}", [])
        if self._index:
            self._noted.wait(_FIRST_SPEAKS)
            note = note._replace(text=f"process {self._index} of {self._count}: {note.text}")
        self._post(note)
        self._noted.wait(self._timeout)  # the thread leaves with it
        self._leave(note)

    def _lost(self, processes: list[int]) -> Note:
        """Returns the note for processes that are lost."""
        told = ", ".join(map(str, processes))
        return Note(
            EXIT_INTERRUPTED,
            f"process {told} of {self._count} (counted from 0) was lost: it no longer answers. {self.how_to_go_on()}",
            processes,
        )

    def _run(self) -> None:
        seen = {index: ("", time.monotonic()) for index in range(1, self._count)}
        for beat in itertools.count():
            try:
                text = self._client.blocking_key_value_get(_END, int(1000 * self._interval))
            except Exception as error:
                if self._stopped.is_set():
                    return
                if "DEADLINE_EXCEEDED" not in str(error):
                    self._unanswered()
                    continue
            else:
                self._leave(Note(*json.loads(text)))
            if self._stopped.is_set():
                return
            try:
                self._client.key_value_set(f"{_BEATS}{self._index}", str(beat), allow_overwrite=True)
                self.contact = now = time.monotonic()
                if self._index == 0:
                    for key, value in self._client.key_value_dir_get(_BEATS):
                        index = int(key.rsplit("/", 1)[1])
                        if index and seen[index][0] != value:
                            seen[index] = value, now
                    silent = [index for index, (_, at) in seen.items() if self._too_long(at)]
                    if silent:
                        self._post(self._lost(silent))
            except Exception:
                self._unanswered()

    def _unanswered(self) -> None:
        """A call failed, which a network may do: waits a little, or ends where no answer came for too long."""
        if not self._stopped.wait(self._interval / 4) and self._too_long(self.contact):
            self.coordinator_lost()

    def _too_long(self, since: float) -> bool:
        """Whether a silence since then is a loss: there is time left to tell all within the timeout."""
        return time.monotonic() - since > self._timeout - 2 * self._interval

    def _post(self, note: Note) -> None:
        try:
            self._client.key_value_set(_END, json.dumps(note))
        except Exception as error:
            if "ALREADY_EXISTS" not in str(error):
                self._leave(note)  # there is nobody to tell

    def coordinator_lost(self) -> NoReturn:
        """Ends this process for the loss of the first, with which the coordination service went."""
        self._leave(self._lost([0]))

    def _leave(self, note: Note) -> NoReturn:
        """Says why and ends this process; the first only when the others know."""
        if not self._lock.acquire(timeout=2 * _GRACE_MS / 1000):  # another thread leaves, and waits for this one
            os._exit(note.status)
        self.leaving = note
        self._noted.set()
        left = [index for index in range(self._count) if index not in note.lost]
        if 0 in left:
            try:
                self._client.wait_at_barrier("medtune/leave", _GRACE_MS, left)
            except Exception as error:
                _log.debug("leaving alone: %s", error)
        if self._index == left[0] or 0 in note.lost:
            os.write(_STDERR, f"\n{self._name}: {note.text}\n".encode())
        os._exit(note.status)


class _Abort:
    """Answers the abort() by which JAX's client ends a process that lost the coordinator, or could not reach it.

    That client leaves no other way to end with a status and a message of ours: its callback cannot be given from
    Python (jaxlib 0.10.2: std::bad_cast). The handler runs in the thread that aborts, like any function it calls. Any
    other abort takes its course.
    """

    def __init__(self, name: str, join_timeout: int):
        self.watch: _Watch | None = None
        self._name, self._join_timeout = name, join_timeout
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._handle)  # C keeps no reference
        self._signal = ctypes.CDLL(None).signal
        self._signal.restype, self._signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
        self._previous = self._signal(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))

    def restore(self) -> None:
        self._signal(signal.SIGABRT, self._previous)

    def _handle(self, number: int) -> None:
        state = distributed.global_state
        if self.watch is None:
            text = (
                f"not all {state.num_processes} processes came to the coordinator {state.coordinator_address} within "
                f"{self._join_timeout} s: start all of them together, and see that they can reach it."
            )
        elif self.watch.leaving is not None:
            os._exit(
                self.watch.leaving.status
            )  # the thread that leaves may wait for a lock that the aborting one holds
        elif state.process_id and (self.watch.silent or not _answers(state.coordinator_address)):
            self.watch.coordinator_lost()
        else:
            return
        os.write(_STDERR, f"\n{self._name}: {text}\n".encode())
        os._exit(EXIT_INTERRUPTED)


def _answers(address: str | None) -> bool:
    host, port = (address or ":0").rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        return True
    except OSError:
        return False

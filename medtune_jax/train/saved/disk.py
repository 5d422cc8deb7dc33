"""A folder that a long run writes to: one writer at a time, and what goes wrong with it is named."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from medtune_jax.errors import Interrupted, UserError

_LOCK = ".lock"
_PATIENCE = 120.0  # seconds; a server of NFS holds the lock of a machine that died for 90 by default
_ASK_AGAIN = 2.0  # seconds
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no space, beyond a quota, beyond the limit of a file's size
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO}
_GONE = {errno.ENOENT, errno.ESTALE}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # file systems without locks, some network ones
_log = logging.getLogger(__name__)


@contextmanager
def one_writer(folder: Path, flag: str = "--workdir") -> Iterator[None]:
    """Makes `folder` and holds its lock, a file in it that the kernel releases however the process ends.

    Of several processes the first holds it for all. A folder in which nothing else was written is removed again.

    Raises:
      UserError: another process of this machine holds it, or the folder cannot be written; `flag` names it.
      Interrupted: one of another machine has held it for two minutes, while we waited: it may have died, and whoever
        started this process is to try again.
    """
    if jax.process_index():
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(folder / _LOCK, folder, flag)
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise UserError(f"The run folder {folder} cannot be written: {error.strerror}.") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # of a folder that vanished there is nothing to remove
            if made and os.listdir(folder) == [_LOCK]:
                (folder / _LOCK).unlink()
                for path in made:
                    path.rmdir()
        os.close(descriptor)


@contextmanager
def one_writer_of_file(path: Path, flag: str) -> Iterator[None]:
    """As `one_writer` for a single file: its folder is made, and the lock lies beside it until the end.

    Raises:
      UserError, Interrupted: as `one_writer`; `path` is a folder.
    """
    if jax.process_index():
        yield
        return
    lock = path.with_name(f".{path.name}{_LOCK}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(lock, path, flag)
    except OSError as error:
        raise UserError(f"{flag}={path} cannot be written: {error.strerror}.") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held: who waits for it sees that it is gone, and makes a new one
        os.close(descriptor)


def refuse_object_store(folder: str | Path, flag: str) -> None:
    """Raises UserError where `folder` is an address (scheme://...), which would become a local folder of that name."""
    if re.match(r"[A-Za-z][\w+.-]+:/", str(folder)):  # pathlib makes one of two slashes
        raise UserError(
            f"{flag}={folder}: object stores are not written to. Mount the bucket, or give a folder on a file system "
            "that all machines share."
        )


def _lock(lock: Path, written: Path, flag: str) -> int:
    """Returns the descriptor that holds the file `lock` until it is closed; written: what it stands for."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder, _, machine = os.pread(descriptor, 400, 0).decode(errors="replace").strip().partition("\n")
            os.close(descriptor)
            holder = holder or "another process"
            told = f"{written} is being written by {holder}. Wait until it ends, or give another {flag}."
            if machine == _machine():  # whose kernel would have released the lock of a process that is dead
                raise UserError(told) from None
            if time.monotonic() > deadline:
                raise Interrupted(told) from None
            time.sleep(_ASK_AGAIN)
            continue
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            _log.warning("%s lies on a file system without locks: see to it that one run at a time writes it.", written)
            return descriptor
        try:
            ours = os.fstat(descriptor).st_ino == os.stat(lock).st_ino
        except FileNotFoundError:
            ours = False
        if ours:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n{_machine()}\n".encode(), 0)
            return descriptor
        os.close(descriptor)  # its holder removed it while we waited: there is a new file to lock


def _machine() -> str:
    """Returns what names this machine since it was started, also where pods have the same hostname on several."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


@contextmanager
def storage_errors_named(workdir: Path) -> Iterator[None]:
    """Turns a full disk, a run folder that vanished or can no longer be written, whatever met it, into a UserError.

    What others say of the user's mistakes passes as it is.
    """
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception as error:
        message = _message(error, workdir)
        if message is None:
            raise
        raise UserError(message) from error


def _message(error: Exception, workdir: Path) -> str | None:
    numbers, texts = _told(error)
    again = "and run the same command to go on."
    if numbers & _FULL:
        return (
            f"The disk is full: {workdir} could not be written to ({'; '.join(texts)}). The checkpoints there are "
            f"whole: make room, or lower --config.checkpoint.keep, {again}"
        )
    about = any(str(workdir) in text for text in texts)
    if numbers & _GONE and about and not (workdir / "config.json").is_file():
        return (
            f"The run folder {workdir} vanished while the run was writing to it, and with it what was saved: bring it "
            f"back (was it moved, removed or unmounted?) {again}"
        )
    if numbers & _CLOSED and about:
        return (
            f"The run folder {workdir} can no longer be written ({'; '.join(texts)}). The checkpoints there are whole: "
            f"mend it {again}"
        )
    return None


def _told(error: BaseException | None) -> tuple[set[int], list[str]]:
    """Returns the error numbers and the texts of an error and those behind it; libraries tell the number in words."""
    numbers, texts = set(), []
    while error is not None:
        text = " ".join(str(error).split())
        number = getattr(error, "errno", None)
        found = {n for n in _FULL | _CLOSED | _GONE if n == number or os.strerror(n) in text}
        if found or isinstance(error, OSError):
            texts.append(text[:200])
        numbers |= found
        error = error.__cause__ or error.__context__
    return numbers, texts

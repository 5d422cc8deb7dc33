"""Writing a result file: whole or not at all, readable by its owner only where its rows are gated, errors by name."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medtune_jax.errors import UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the file system refuses inside (no such place, no right, disk full) into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. Free the place, or give another --out."
        ) from error


def make_folder(path: Path, private: bool = False) -> None:
    """Makes a folder for results and its parents; a new one is its owner's only if private.

    Raises:
      UserError: it cannot be made or written into.
    """
    with writing(path):
        path.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def write_file(path: Path, data: bytes, private: bool = False) -> None:
    """Writes `data` under a temporary name, syncs it, then renames it to `path` (mode 0600 if private).

    Raises:
      UserError: the file cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        temporary.unlink(missing_ok=True)  # what an interrupted call left may be open to others
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(os.open(temporary, flags, 0o600 if private else 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)


def to_json(value: Any) -> bytes:
    """Returns indented JSON with sorted keys, the same bytes for the same value; NaN is refused by ValueError."""
    return (json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def to_json_line(value: Any) -> bytes:
    """Returns one line of JSON with its keys in the order of `value`."""
    # A lone surrogate can stand in a str but not in UTF-8; it is escaped so that every text can be written.
    try:
        return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(value, allow_nan=False) + "\n").encode()

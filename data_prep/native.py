"""What every reader of a native corpus file returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtune_jax.errors import UserError
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.rows import read_text


@dataclass
class NativeFile:
    """The annotations of one file in file order, and why anything in it is not among them."""

    annotations: list[Any] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


Reader = Callable[[Path, Task], NativeFile]


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its end); lines end at LF or CRLF and at nothing else.

    Raises:
      UserError: the file is not UTF-8 or cannot be read.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        yield number, line.removesuffix("\r")


def not_empty(found: NativeFile, path: Path, expected: str) -> NativeFile:
    """Returns `found`.

    Raises:
      UserError: nothing was read from the file.
    """
    if not found.annotations:
        raise UserError(f"{path}: empty, no {expected} in it.")
    return found

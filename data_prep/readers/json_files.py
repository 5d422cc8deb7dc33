"""JSON files of any size, read object by object, each with the place it stands at."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medtune_jax.errors import UserError
from medtune_jax.tasks.rows import read_text
from medtune_jax.tasks.text import clean_text

_CHUNK = 1 << 20  # characters read at once
_SPACE = re.compile(r"[ \t\r\n]*")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_DECODER = json.JSONDecoder()


def json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("file:line", object) for every object of a file that holds a JSON list of objects or JSON lines.

    The file is read in pieces: beside what the caller keeps, memory is that of the largest object.

    Raises:
      UserError: with file and line: not JSON, a list that does not end, something else than an object; with the file:
        not UTF-8, not readable.
    """
    pieces = _pieces(path)
    text, at, line = "", 0, 1
    in_list: bool | None = None  # None before the first character that is not blank
    closed = after_item = False
    while True:
        start = _end_of_space(text, at)
        line += text.count("\n", at, start)
        at = start
        if at == len(text):
            text, at = next(pieces, ""), 0
            if text:
                continue
            if in_list and not closed:
                raise UserError(f"{path}:{line}: the file ends inside its list; it seems half-written.")
            return
        where = f"{path}:{line}"
        if in_list is None:
            in_list = text[at] == "["
            at += in_list
        elif closed:
            raise UserError(f"{where}: not JSON (text after the end of the list).")
        elif in_list and text[at] == "]":
            closed = True
            at += 1
        elif in_list and after_item:
            if text[at] != ",":
                raise UserError(f"{where}: not JSON (a comma is expected between two items of the list).")
            after_item = False
            at += 1
        else:
            try:
                value, end = _DECODER.raw_decode(text, at)
            except json.JSONDecodeError as error:
                rest = len(text) - at
                more = _at_least(pieces, rest)
                if not more:
                    line += text.count("\n", at, error.pos)
                    raise UserError(f"{path}:{line}: not JSON ({error.msg}); is the file complete?") from error
                text, at = text[at:] + more, 0
                continue
            if not isinstance(value, dict):
                raise UserError(f"{where}: a JSON object is expected, found {type(value).__name__}.")
            yield where, value
            line += text.count("\n", at, end)
            at, after_item = end, True


def json_object(path: Path) -> dict[str, Any]:
    """Returns the one object that a file holds.

    Raises:
      UserError: with file and line: not JSON; with the file: something else than an object, not UTF-8, not readable.
    """
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}); is the file complete?") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is expected, found {type(value).__name__}.")
    return value


def text_at(record: Mapping[str, Any], key: str, where: str, expected: str) -> str:
    """Returns the string under `key`, `whole`, its line ends LF and no white space at its edges.

    Args:
      where: the record's place, for the error.
      expected: what such a record must hold, for the error.

    Raises:
      UserError: there is none.
    """
    value = record.get(key)
    if not isinstance(value, str):
        raise UserError(f"{where}: no string '{key}'; expected {expected}.")
    return clean_text(whole(value))


def whole(text: str) -> str:
    """Returns the text with halves of surrogate pairs, which JSON can write and UTF-8 cannot, as U+FFFD."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def _end_of_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # the pattern matches the empty string
    return found.end()


def _pieces(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            while piece := stream.read(_CHUNK):
                yield piece
    except UnicodeDecodeError:
        read_text(path)  # raises: it sees the whole file, so it can name the line
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _at_least(pieces: Iterator[str], characters: int) -> str:
    """Returns `characters` or more of the next pieces, fewer at the end of the file: reading as much again as did not
    suffice keeps the decoding of one long object linear."""
    found: list[str] = []
    length = 0
    while length < max(characters, 1) and (piece := next(pieces, "")):
        found.append(piece)
        length += len(piece)
    return "".join(found)

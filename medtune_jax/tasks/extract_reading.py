"""Reading names from a model's text: a JSON list, or a JSON object of one list per field, and what is left of one.

Kinds of problems, of a repaired text:
  cut_at_marker    a line that starts with `###` and what follows it was dropped
  code_fence       the JSON stood between lines of three backticks
  extra_text       other words stood before or after the JSON or the list
  single_quotes    names in single quotes
  unquoted         names without quotes
  trailing_comma   a comma before a closing bracket
  bracket          a closing bracket of the wrong kind
  cut_off          the text ends inside the JSON; a name that was not ended is dropped
  not_json         nothing of these, but JSON does not allow it: a missing comma, a quote inside a name
  object_for_list  an object of a single list, where a list was asked for
  not_a_list       one name where a list was asked for
  not_a_string     a number; it is read as it is written
  nested_list      a list where a name was asked for; its first name counts
  bad_item         a member that is no name, empty or of another type; it is dropped
  field_case, unknown_field, missing_field, repeated_field
                   a field in the wrong case, not of the task (dropped), absent (empty), or twice (joined)
  bullets, lines, commas
                   no JSON but one item per bulleted line, per line, or between commas
Of an unparsable one: empty_output, no_list, no_field, list_for_object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from medtune_jax.tasks.base import MARKER

_FENCE = "```"
_OPENERS = "[{"
# An opening bracket that a list of names may start with, unlike that of a reference such as "[1]".
_START = re.compile(r"[\[{](?=\s*[\"'\[\]{}])")
# A quote ends a string only where a delimiter, the end of the line or that of the text follows: names hold apostrophes.
_STRING = r"{q}((?:[^{q}\\\n]|\\.|{q}(?![ \t]*(?:[,:\]}}\n]|\Z)))*+){q}"
_BARE = r"([^\s\[\]{},:\"'][^\[\]{},:\n]*)"
_TOKEN = re.compile(
    r"[ \t\r\n]*(?:([\[\]{},:])|" + _STRING.format(q='"') + "|" + _STRING.format(q="'") + "|" + _BARE + ")"
)
_BULLET = re.compile(r"(?:[-*\u2022\u2013]|\d{1,3}[.)])[ \t]+")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_SENTENCE_ENDS = (".", "?", "!", ":")
_MOST_WORDS = 6
_LEAD_IN = re.compile(r"([^:,\n]{1,60}):[*_]{0,3}\s+(?=\S)")
_MARKS = ' *_"'
_PLACEHOLDERS = ("", "..", "...", "\u2026")
_MOST_VALUES = 20  # so many later JSON values of one text are looked at, for linear time


class _Number(str):
    """A JSON number as it was written."""


class _Key(str):
    """A string before a colon."""


class _Object(list[Any]):
    """A JSON object as a list in which each _Key stands before its value."""


def read_list(text: str, single: bool, problems: list[str]) -> list[str] | None:
    """Returns the names of a list, repeats kept, or None; adds the defects met to `problems`. Linear time.

    Args:
      single: one name is asked for, so that a line without JSON is not split at its commas.
    """
    value = _read_value(text, _OPENERS, problems)
    if isinstance(value, str):
        return _plain_list(value, single, problems)
    if isinstance(value, _Object):
        members = [member for _, member in _pairs(value)]
        if len(members) != 1:
            problems.append("no_list")
            return None
        problems.append("object_for_list")
        value = members[0] if isinstance(members[0], list) else members
    if value is None:
        return None
    names = _names(value, problems)
    # Brackets that nothing usable stands in are an answer only where they were closed and empty.
    if not names and (value or "cut_off" in problems):
        problems.append("no_list")
        return None
    return names


def read_fields(text: str, fields: Sequence[str], problems: list[str]) -> list[list[str]] | None:
    """Returns the names of each field in order, or None where no field is found; else as `read_list`."""
    value = _read_value(text, "{", problems)
    if value is None:
        return None
    if not isinstance(value, _Object):
        problems.append("no_list" if isinstance(value, str) else "list_for_object")
        return None
    by_folded = {field.casefold(): field for field in fields}
    found: dict[str, list[str]] = {}
    for key, member in _pairs(value):
        field = by_folded.get(key.strip().casefold())
        if field is None:
            problems.append("unknown_field")
            continue
        if field != key:
            problems.append("field_case")
        if not isinstance(member, list):
            problems.append("not_a_list")
            member = [] if member is None else [member]
        names = _names(member, problems)
        if member and not names:
            continue
        if field in found:
            problems.append("repeated_field")
        found.setdefault(field, []).extend(names)
    if not found or ("cut_off" in problems and not any(found.values())):
        problems.append("no_field")
        return None
    problems.extend("missing_field" for field in fields if field not in found)
    return [found.get(field, []) for field in fields]


def _read_value(text: str, openers: str, problems: list[str]) -> list[Any] | str | None:
    """Returns the JSON list or object of the text, strict reading first: of several the last on a line of its own (see
    `_last_whole`), else the first; the text itself where there is none."""
    stripped = text.strip()
    strict = _strict(stripped)
    if strict is not None:
        return strict
    kept = _before_marker(stripped)
    if kept != stripped:
        problems.append("cut_at_marker")
        strict = _strict(kept)
        if strict is not None:
            return strict
    if not kept:
        problems.append("empty_output")
        return None
    if _FENCE in kept:
        problems.append("code_fence")
        kept = re.sub(r"```(?:json\b)?", "\n", kept, flags=re.IGNORECASE).strip()
    last = _last_whole(kept, openers)
    if last is not None:
        problems.append("extra_text")
        return last
    at = _start(kept, openers)
    if at is None and kept.startswith(tuple(openers)):
        at = 0
    return kept if at is None else _loose(kept, at, problems)


def _last_whole(text: str, openers: str) -> list[Any] | None:
    """Returns the last of several JSON values on lines of their own that is not a placeholder (["..."]), or None.

    A model that thinks aloud, or repeats the form it was asked for, gives its answer last.
    """
    lines = [line.strip() for line in text.split("\n")]
    values = [value for line in lines[-_MOST_VALUES:] if line.startswith(tuple(openers)) and (value := _strict(line))]
    if len(values) < 2:
        return None
    return next((value for value in reversed(values) if any(map(_is_usable, value))), None)


def _is_usable(member: Any) -> bool:
    if isinstance(member, list):
        return any(map(_is_usable, member))
    return not isinstance(member, _Key) and not (isinstance(member, str) and member.strip() in _PLACEHOLDERS)


def _start(text: str, openers: str) -> int | None:
    return next((match.start() for match in _START.finditer(text) if text[match.start()] in openers), None)


def _strict(text: str) -> list[Any] | None:
    """Returns the list or object that the whole text is in JSON, or None."""
    try:
        value = json.loads(
            text,
            parse_int=_Number,
            parse_float=_Number,
            object_pairs_hook=lambda pairs: _Object(part for key, value in pairs for part in (_Key(key), value)),
        )
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _before_marker(text: str) -> str:
    if text.startswith(MARKER):
        return ""
    at = re.search(rf"\n *{MARKER}", text)
    return text if at is None else text[: at.start()].rstrip()


def _loose(text: str, at: int, problems: list[str]) -> list[Any]:
    """Reads the value that opens at `at`, with an explicit stack, to its closing bracket or to the end of the text."""
    if text[:at].strip():
        problems.append("extra_text")
    top: list[Any] = []  # holds the value that is read
    open_lists = [top]
    noted: set[str] = set()

    def note(problem: str) -> None:
        if problem not in noted:
            noted.add(problem)
            problems.append(problem)

    previous = ""
    while True:
        token = _TOKEN.match(text, at)
        if token is None:
            note("cut_off")
            return top[0]
        at = token.end()
        mark, double, single, bare = token.groups()
        if bare is not None and at == len(text):
            continue  # perhaps half a name: the next look finds the end
        inside = open_lists[-1]
        if mark in ("[", "{"):
            inside.append([] if mark == "[" else _Object())
            open_lists.append(inside[-1])
        elif mark in ("]", "}"):
            if previous == ",":
                note("trailing_comma")
            if isinstance(inside, _Object) != (mark == "}"):
                note("bracket")
            open_lists.pop()
            if len(open_lists) == 1:
                if text[at:].strip():
                    problems.append("extra_text")
                if not problems:
                    problems.append("not_json")
                return top[0]
        elif mark == ":":
            if inside and type(inside[-1]) is str and isinstance(inside, _Object):
                inside[-1] = _Key(inside[-1])
        elif double is not None:
            inside.append(_unescape(double))
        elif single is not None:
            note("single_quotes")
            inside.append(_unescape(single.replace('"', '\\"').replace("\\'", "'")))
        elif bare is not None:
            inside.append(_bare(bare.strip(), note))
        previous = mark or ""


def _bare(word: str, note: Callable[[str], None]) -> Any:
    """Returns what a word without quotes stands for."""
    if word in ("null", "true", "false"):
        return None if word == "null" else word == "true"
    if _NUMBER.fullmatch(word):
        return _Number(word)
    note("unquoted")
    return word


def _unescape(body: str) -> str:
    try:
        return json.loads(f'"{body}"', strict=False)
    except ValueError:
        return re.sub(r"\\(.)", r"\1", body)


def _pairs(value: _Object) -> list[tuple[str, Any]]:
    """Returns the keys of an object with their values; what has no key, and keys without a value, are left out."""
    return [(key, member) for key, member in pairwise(value) if isinstance(key, _Key) and not isinstance(member, _Key)]


def _names(members: list[Any], problems: list[str]) -> list[str]:
    """Returns the members that are names."""
    names: list[str] = []
    for member in members:
        if isinstance(member, list):
            problems.append("nested_list")
            member = next((one for one in member if type(one) is str), None)
        elif isinstance(member, _Number):
            problems.append("not_a_string")
        name = member.strip() if isinstance(member, str) and not isinstance(member, _Key) else ""
        if name:
            names.append(str(name))
        else:
            problems.append("bad_item")
    return names


def _plain_list(text: str, single: bool, problems: list[str]) -> list[str] | None:
    """Returns the items of a list without JSON where its form leaves no doubt (our rule), else None.

    Every line starts with a bullet or a number; or every line is short and ends no sentence; or there is one line, and
    what its commas separate is that. A first line that ends in a colon, or short words and a colon before a single
    line, may introduce the items. A single answer may end in a full stop. `*` and `_` around an item are markdown.
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    introduced = len(lines) > 1 and lines[0].endswith(":")
    rest = lines[introduced:]
    lead_in = _LEAD_IN.match(rest[0]) if len(rest) == 1 else None
    if lead_in is not None and _is_short(lead_in[1]):
        introduced, rest = True, [rest[0][lead_in.end() :]]
    if all(_BULLET.match(line) for line in rest):
        kind, names = "bullets", [_BULLET.sub("", line, count=1) for line in rest]
    elif len(rest) > 1 or single:
        kind, names = "lines", [line.removesuffix(".") if single else line for line in rest]
    else:
        kind, names = "commas", rest[0].split(",")
    names = [name.strip().strip(_MARKS).strip() for name in names]
    if kind != "bullets" and not all(map(_is_short, names)):
        names = []
    names = [name for name in names if any(map(str.isalnum, name))]
    if not names:
        problems.append("no_list")
        return None
    problems.extend(["extra_text", kind] if introduced else [kind])
    return names


def _is_short(name: str) -> bool:
    return len(name.split()) <= _MOST_WORDS and not name.endswith(_SENTENCE_ENDS)

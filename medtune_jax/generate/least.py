"""A short text of a regular expression or of a JSON schema, read off its syntax.

Both are proposals: the syntax is followed as far as it is common, and whether the text belongs to the grammar is for
the grammar to say (matcher.py).
"""

from __future__ import annotations

import json
import math
import re
import string
import warnings
from collections.abc import Callable, Iterable
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

_LONGEST = 4096  # characters
_MOST_SCHEMAS = 10_000  # visited for one instance
_CHARACTERS = string.ascii_lowercase + string.digits + string.ascii_uppercase + " " + string.punctuation + "\n\t\x01é"
_KINDS = ("integer", "number", "string", "array", "object", "boolean", "null")
_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "duration": "P1D",
    "email": "a@a.aa",
    "hostname": "a",
    "ipv4": "0.0.0.0",
    "ipv6": "::",
    "time": "00:00:00Z",
    "uri": "a:a",
    "uuid": "00000000-0000-0000-0000-000000000000",
}


def text_of_regex(pattern: str) -> str | None:
    """Returns a text that `pattern` matches, of its shortest branches; None where Python's syntax does not hold it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what sets like [a&&b] may come to mean
            parsed = _parser.parse(re.sub(r"(?<!\\)\(\?<(?=\w)", "(?P<", pattern))  # Rust names groups as (?<name>
        return _sequence(parsed)
    except (re.error, OverflowError, RecursionError):
        return None


def _sequence(parsed: Iterable[tuple[Any, Any]]) -> str | None:
    parts = [_part(code, argument) for code, argument in parsed]
    whole = [part for part in parts if part is not None]
    return "".join(whole) if len(whole) == len(parts) and sum(map(len, whole)) <= _LONGEST else None


def _part(code: Any, argument: Any) -> str | None:
    match code:
        case codes.LITERAL:
            return chr(argument)
        case codes.ANY:
            return _CHARACTERS[0]
        case codes.NOT_LITERAL:
            return _one([(codes.NEGATE, None), (codes.LITERAL, argument)])
        case codes.IN:
            return _one(argument)
        case codes.AT:
            return ""
        case codes.SUBPATTERN:
            return _sequence(argument[-1])
        case codes.ATOMIC_GROUP:
            return _sequence(argument)
        case codes.BRANCH:
            texts = [text for branch in argument[1] if (text := _sequence(branch)) is not None]
            return min(texts, key=lambda text: len(text.encode(errors="replace")), default=None)
        case codes.MAX_REPEAT | codes.MIN_REPEAT | codes.POSSESSIVE_REPEAT:
            least, _, repeated = argument
            inner = _sequence(repeated) if least else ""
            return None if inner is None or least * len(inner) > _LONGEST else inner * least
    return None


def _one(items: list[tuple[Any, Any]]) -> str | None:
    """Returns a character of a set."""
    wanted = not items or items[0][0] is not codes.NEGATE
    items = items[not wanted :]
    own = [chr(argument[0] if code is codes.RANGE else argument) for code, argument in items if code in _OWN]
    return next((one for one in (*_CHARACTERS, *own) if any(_holds(item, one) for item in items) is wanted), None)


_OWN = (codes.LITERAL, codes.RANGE)
_CATEGORIES: dict[Any, Callable[[str], Any]] = {
    codes.CATEGORY_DIGIT: re.compile(r"\d").match,
    codes.CATEGORY_NOT_DIGIT: re.compile(r"\D").match,
    codes.CATEGORY_SPACE: re.compile(r"\s").match,
    codes.CATEGORY_NOT_SPACE: re.compile(r"\S").match,
    codes.CATEGORY_WORD: re.compile(r"\w").match,
    codes.CATEGORY_NOT_WORD: re.compile(r"\W").match,
}


def _holds(item: tuple[Any, Any], character: str) -> bool:
    code, argument = item
    if code is codes.CATEGORY:
        return _CATEGORIES[argument](character) is not None
    low, high = argument if code is codes.RANGE else (argument, argument)
    return low <= ord(character) <= high


def text_of_schema(schema: Any) -> str | None:
    """Returns a short instance of a JSON schema on one line, as json.dumps writes it; None where none is found."""
    try:
        text = _written(_Instances(schema).of(schema))
    except (_NoInstance, RecursionError, TypeError, ValueError, AttributeError):  # a schema that is none included
        return None
    return text if len(text) <= _LONGEST else None


class _NoInstance(Exception):
    """No instance was found."""


class _Instances:
    """Short instances of the schemas within one document, whose references they resolve."""

    def __init__(self, root: Any):
        self._root = root
        self._open: set[str] = set()  # a shortest instance of a schema holds no other one of the same
        self._left = _MOST_SCHEMAS

    def of(self, schema: Any) -> Any:
        """Returns an instance. Raises _NoInstance."""
        self._left -= 1
        if schema is True:
            return 0
        if schema is False or self._left < 0:
            raise _NoInstance
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._shortest(schema["enum"], lambda value: value)
        if "$ref" in schema:
            return self._referred(schema["$ref"], _without(schema, "$ref"))
        if "allOf" in schema:
            return self.of(_merged([_without(schema, "allOf"), *schema["allOf"]]))
        for key in ("anyOf", "oneOf"):
            if key in schema:
                rest = _without(schema, key)
                return self._shortest([_merged([rest, branch]) for branch in schema[key]], self.of)
        kinds = schema.get("type", _KINDS)
        return self._shortest([kinds] if isinstance(kinds, str) else kinds, lambda kind: self._of_kind(kind, schema))

    def _shortest(self, choices: Iterable[Any], make: Callable[[Any], Any]) -> Any:
        found = []
        for choice in choices:
            try:
                found.append(make(choice))
            except _NoInstance:
                continue
        if not found:
            raise _NoInstance
        return min(found, key=lambda value: len(_written(value)))

    def _referred(self, reference: str, rest: dict[str, Any]) -> Any:
        if reference in self._open or not reference.startswith("#"):
            raise _NoInstance
        target = self._root
        for part in reference[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            target = target[int(part)] if isinstance(target, list) else target.get(part, False)
        self._open.add(reference)
        try:
            return self.of(_merged([rest, target]) if rest else target)
        finally:
            self._open.discard(reference)

    def _of_kind(self, kind: str, schema: dict[str, Any]) -> Any:
        match kind:
            case "null":
                return None
            case "boolean":
                return True
            case "string":
                return _string(schema)
            case "integer" | "number":
                return _number(schema, whole=kind == "integer")
            case "array":
                return self._array(schema)
            case "object":
                return self._object(schema)
        raise _NoInstance

    def _array(self, schema: dict[str, Any]) -> list[Any]:
        items = schema.get("items", True)
        first = schema.get("prefixItems", items if isinstance(items, list) else [])
        rest = schema.get("additionalItems", True) if isinstance(items, list) else items
        least = schema.get("minItems", 0)
        if least > _LONGEST:
            raise _NoInstance
        values = [self.of(one) for one in first[:least]]
        return values if least <= len(values) else values + [self.of(rest)] * (least - len(values))

    def _object(self, schema: dict[str, Any]) -> dict[str, Any]:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        optional = [name for name in properties if name not in required]
        optional = optional[: max(0, schema.get("minProperties", 0) - len(required))]
        names = [name for name in properties if name in required or name in optional]
        names += [name for name in required if name not in properties]
        others = schema.get("additionalProperties", True)
        return {name: self.of(properties.get(name, others)) for name in names}


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _without(schema: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != key}


def _merged(schemas: Iterable[Any]) -> Any:
    """Returns one schema for what several ask: members and names of all, else what the later says."""
    whole: dict[str, Any] = {}
    for schema in schemas:
        if schema is False:
            return False
        for key, value in {}.items() if schema is True else schema.items():
            if key in ("properties", "$defs", "definitions"):
                value = {**whole.get(key, {}), **value}
            elif key == "required":
                value = [*whole.get(key, []), *value]
            whole[key] = value
    return whole


def _string(schema: dict[str, Any]) -> str:
    text = _FORMATS.get(schema.get("format", ""), "")
    if "pattern" in schema:
        found = text_of_regex(schema["pattern"])
        if found is None:
            raise _NoInstance
        text = found
    return text or "a" * min(schema.get("minLength", 0), _LONGEST)


def _number(schema: dict[str, Any], *, whole: bool) -> int | float:
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    step = schema.get("multipleOf", 1 if whole else 0)
    tried: list[int | float] = [*range(10), -1]
    for bound in (low, high):
        if math.isfinite(bound):
            tried += [math.floor(bound) + more for more in (-1, 0, 1, 2)]
            if not whole:
                tried.append(bound)
            if step:
                tried += [math.floor(bound / step) * step + more * step for more in (-1, 0, 1)]
    if step:
        tried.append(step)
    if not whole and math.isfinite(low) and math.isfinite(high):
        tried.append((low + high) / 2)
    for value in sorted(tried, key=lambda value: len(_written(value))):
        if (
            low <= value <= high
            and value != schema.get("exclusiveMinimum")
            and value != schema.get("exclusiveMaximum")
            and not (step and value % step)
            and (not whole or value == int(value))
        ):
            return int(value) if whole else value
    raise _NoInstance

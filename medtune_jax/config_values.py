"""A `Config` as plain values: to and from JSON, overridden by text from a command line, compared with another.

A leaf is named by its path, "train.seed" or "model.lora.rank".
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from medtune_jax.config import Config
from medtune_jax.errors import UserError, did_you_mean

Values = dict[str, Any]  # nested: a group's name -> its leaves and inner groups


def leaves(kind: type = Config, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Yields (path, field, type) of every leaf, in the order of the dataclasses."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from leaves(typing.cast(type, hint), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field, hint


def get(config: Config, path: str) -> Any:
    """Returns the value of the leaf `path`."""
    value: Any = config
    for key in path.split("."):
        value = getattr(value, key)
    return value


def to_dict(config: Config) -> Values:
    """Returns nested plain dicts, JSON-ready (tuples become lists)."""
    return _plain(dataclasses.asdict(config))


def from_dict(values: Mapping[str, Any]) -> Config:
    """Builds a Config from nested dicts; raises UserError on an unknown group or key or a value of the wrong type."""
    return _build(Config, values, "")


def read_json(path: Path) -> Config:
    """Returns the configuration that a run wrote; raises UserError where the file is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}.") from None
    if not isinstance(found, dict) or not all(isinstance(leaves, dict) for leaves in found.values()):
        raise UserError(f"{path} is damaged: it holds no object of groups.")
    try:
        return from_dict(found)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def override(config: Config, overrides: Mapping[str, str]) -> Config:
    """Applies {"group.leaf": text} as typed on a command line ("none" clears an optional, commas separate a tuple)."""
    known = {path: hint for path, _, hint in leaves()}
    values = to_dict(config)
    for path, text in overrides.items():
        if path not in known:
            group = path.split(".")[0]
            groups = [field.name for field in dataclasses.fields(Config)]
            if group not in groups:
                raise UserError(f"Unknown config group '{group}' in --config.{path}.{did_you_mean(group, groups)}")
            raise UserError(f"Unknown config key '{path}' in --config.{path}.{did_you_mean(path, known)}")
        *above, key = path.split(".")
        node = values
        for name in above:
            node = node[name]
        node[key] = _from_text(path, text, known[path])
    return from_dict(values)


def changed_math(old: Config, new: Config) -> list[str]:
    """Returns one line per `math` field whose value differs: 'train.seed: 0 -> 1'."""
    return [
        f"{path}: {get(old, path)} -> {get(new, path)}"
        for path, field, _ in leaves()
        if field.metadata["kind"] == "math" and get(old, path) != get(new, path)
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _build(kind: Any, values: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    built = {}
    for key, value in values.items():
        path = prefix + key
        if key not in hints:
            what = "key" if prefix else "group"
            raise UserError(f"Unknown config {what} '{path}'.{did_you_mean(key, hints)}")
        if not dataclasses.is_dataclass(hints[key]):
            built[key] = _checked(path, value, hints[key])
        elif isinstance(value, Mapping):
            built[key] = _build(hints[key], value, f"{path}.")
        else:
            raise UserError(f"{path} is {value!r}; expected a group of keys.")
    return kind(**built)


def _options(hint: Any) -> tuple[Any, bool]:
    """Returns (the type without None, whether None is allowed)."""
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        (inner,) = (a for a in arguments if a is not type(None))
        return inner, True
    return hint, False


def _checked(path: str, value: Any, hint: Any) -> Any:
    inner, optional = _options(hint)
    if value is None and optional:
        return None
    if typing.get_origin(inner) is Literal:
        choices = typing.get_args(inner)
        if value not in choices:
            raise UserError(f"{path} is {value!r}.{did_you_mean(str(value), map(str, choices))}")
        return value
    if typing.get_origin(inner) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            return tuple(value)
    elif inner is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, inner) and not (inner is int and isinstance(value, bool)):
        return value
    name = "tuple of strings" if typing.get_origin(inner) is tuple else inner.__name__
    raise UserError(f"{path} is {value!r}; expected {name}{' or none' if optional else ''}.")


def _from_text(path: str, text: str, hint: Any) -> Any:
    inner, optional = _options(hint)
    if optional and text.lower() == "none":
        return None
    if typing.get_origin(inner) is tuple:
        return tuple(part for part in text.split(",") if part)
    if inner is bool:
        if text.lower() in ("true", "1", "yes"):
            return True
        if text.lower() in ("false", "0", "no"):
            return False
        raise UserError(f"{path}={text}: expected true or false.")
    if inner in (int, float):
        try:
            return inner(text)
        except ValueError:
            raise UserError(f"{path}={text}: expected {inner.__name__}.") from None
    return text

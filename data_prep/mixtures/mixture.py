"""What a mixture is: which rows of which sources stand in which split. Read from TOML (docs/mixtures.md)."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.tasks.definition import CATEGORIES
from medtune_jax.tasks.registry import get_source
from medtune_jax.tasks.source import SPLITS

CONTAMINATION = ("report", "drop", "off")
_BUILT_IN = Path(__file__).parent


@dataclass(frozen=True)
class Ingredient:
    """Rows of one source for one split of the result.

    Attributes:
      into: the split of the result.
      source: registry name; with `path`, the source to keep of its rows, all where empty.
      path: instead of a raw corpus, a file or folder of rows or hf://owner/name.
      split: the source's split to take; the same as `into` where not said.
      rows: how many rows are expected of it in the end; a difference is reported.
      cap: at most so many rows, drawn by a seeded permutation.
      fraction: that share of its rows, rounded down, drawn likewise.
      weight: its share of `train_rows` is proportional to it.
      categories: the kinds of rows to keep (QA, IE, GEN, other); all where empty.
    """

    into: str
    source: str = ""
    path: str = ""
    split: str = ""
    rows: int | None = None
    cap: int | None = None
    fraction: float | None = None
    weight: float | None = None
    categories: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path or self.source


@dataclass(frozen=True)
class Mixture:
    """A composition of rows.

    Attributes:
      shuffle: the splits whose rows are put into a seeded order; the others stay in the order of their ingredients.
      dedup: keep the first of the rows of a split that agree in source, input and output.
      contamination: what is done with training rows that share text with a test set: report, drop or off.
      balance: "task" for as many training rows of each kind of task, "" for as they are.
      train_rows: size of the training split, drawn by weights or temperature; None for all.
      temperature: shares of train_rows are proportional to rows ** (1 / temperature).
      folder: what the ingredients' paths are relative to.
    """

    name: str
    ingredients: tuple[Ingredient, ...]
    description: str = ""
    shuffle: tuple[str, ...] = ()
    dedup: bool = True
    contamination: str = "report"
    balance: str = ""
    train_rows: int | None = None
    temperature: float | None = None
    folder: Path = Path()


_TYPES: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "str": ("a string", str),
    "bool": ("true or false", bool),
    "int | None": ("a whole number", int),
    "float | None": ("a number", (int, float)),
    "tuple[str, ...]": ("a list of strings", list),
}


def built_in() -> list[str]:
    """Returns the names of the mixtures that come with the package."""
    return sorted(path.stem for path in _BUILT_IN.glob("*.toml"))


def load_mixture(name: str) -> Mixture:
    """Returns a built-in mixture by name, or that of a TOML file.

    Raises:
      UserError: there is none, or its file is not a mixture; names file and key.
    """
    path = Path(name) if name.endswith(".toml") else _BUILT_IN / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise UserError(f"--mixture={name}: no such file.")
        raise UserError(f"Unknown mixture '{name}'.{did_you_mean(name, built_in())} A file's name ends in .toml.")
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); convert the file to UTF-8.") from error
    except ValueError as error:  # TOMLDecodeError is one, a number of too many digits another
        raise UserError(f"{path}: not TOML: {error}.") from error
    return replace(mixture_of(table, path.stem, str(path)), folder=path.parent)


def mixture_of(table: Mapping[str, Any], name: str, where: str) -> Mixture:
    """Returns the mixture that a parsed TOML file describes.

    Args:
      where: the file, for errors.

    Raises:
      UserError: an unknown key or source, a value of the wrong type or range, options that exclude each other.
    """

    def fail(key: str, problem: str) -> NoReturn:
        raise UserError(f"{where}: {key}: {problem}")

    rest = {key: value for key, value in table.items() if key not in SPLITS}
    settings = _settings(Mixture, rest, ("name", "ingredients", "folder"), where, SPLITS)
    ingredients = []
    for split in SPLITS:
        entries = table.get(split, [])
        if not (isinstance(entries, list) and all(isinstance(entry, Mapping) for entry in entries)):
            fail(split, f"must be a list of tables: write [[{split}]] above each ingredient.")
        for number, entry in enumerate(entries, 1):
            ingredients.append(_ingredient(entry, split, f"{where}: [[{split}]] {number}"))
    if not ingredients:
        fail("train", "no ingredient: write [[train]] and below it source = 'NCBI-disease'.")
    mixture = Mixture(name=name, ingredients=tuple(ingredients), **settings)
    _check(mixture, fail)
    return mixture


def _ingredient(entry: Mapping[str, Any], split: str, where: str) -> Ingredient:
    settings = {"split": split, **_settings(Ingredient, entry, ("into",), where)}
    found = Ingredient(into=split, **settings)
    if not found.name:
        raise UserError(f"{where}: source: name a source, or a path to rows.")
    if found.source and not found.path:
        found = replace(found, source=get_source(found.source).name)
    for category in found.categories:
        if category not in CATEGORIES:
            raise UserError(f"{where}: categories: unknown '{category}'.{did_you_mean(category, CATEGORIES)}")
    if found.cap is not None and found.fraction is not None:
        raise UserError(f"{where}: cap and fraction exclude each other.")
    for key in ("cap", "rows", "fraction", "weight"):
        value = getattr(found, key)
        if value is not None and not value > 0:
            raise UserError(f"{where}: {key}: must be above 0, found {value}.")
    if found.fraction is not None and found.fraction > 1:
        raise UserError(f"{where}: fraction: must be at most 1, found {found.fraction}.")
    return found


def _settings(
    kind: type, table: Mapping[str, Any], not_these: tuple[str, ...], where: str, others: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Returns the values of a dataclass's fields that a table gives, their types checked.

    Args:
      others: further keys that an unknown one may have been meant as.
    """
    known = {entry.name: str(entry.type) for entry in fields(kind) if entry.name not in not_these}
    found = {}
    for key, value in table.items():
        if key not in known:
            raise UserError(f"{where}: {key}: unknown key.{did_you_mean(key, [*known, *others])}")
        expected, types = _TYPES[known[key]]
        texts = not isinstance(value, list) or all(isinstance(part, str) for part in value)
        if not isinstance(value, types) or not texts or (isinstance(value, bool) and types is not bool):
            raise UserError(f"{where}: {key}: must be {expected}, found {value!r}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {key}: must be a finite number, found {value}.")
        found[key] = tuple(value) if isinstance(value, list) else value
    return found


def _check(mixture: Mixture, fail: Callable[[str, str], NoReturn]) -> None:
    for split in mixture.shuffle:
        if split not in SPLITS:
            fail("shuffle", f"unknown split '{split}'.{did_you_mean(split, SPLITS)}")
    if mixture.contamination not in CONTAMINATION:
        fail("contamination", f"unknown '{mixture.contamination}'.{did_you_mean(mixture.contamination, CONTAMINATION)}")
    if mixture.balance not in ("", "task"):
        fail("balance", f"unknown '{mixture.balance}': only 'task' is known.")
    weighted = [ingredient.weight is not None for ingredient in mixture.ingredients if ingredient.into == "train"]
    if any(ingredient.weight is not None for ingredient in mixture.ingredients if ingredient.into != "train"):
        fail("weight", "is for [[train]] only.")
    if any(weighted) and not all(weighted):
        fail("weight", "give it to every [[train]] ingredient, or to none.")
    if any(weighted) and mixture.temperature is not None:
        fail("temperature", "weights and a temperature exclude each other.")
    if (any(weighted) or mixture.temperature is not None) != (mixture.train_rows is not None):
        fail("train_rows", "the size of the training split goes with weights or a temperature, and they with it.")
    if mixture.temperature is not None and not mixture.temperature >= 1:
        fail("temperature", f"must be at least 1 (1: by size; larger: more even), found {mixture.temperature}.")
    if mixture.train_rows is not None and mixture.train_rows <= 0:
        fail("train_rows", f"must be above 0, found {mixture.train_rows}.")
    if mixture.balance and mixture.train_rows is not None:
        fail("balance", "and train_rows exclude each other.")

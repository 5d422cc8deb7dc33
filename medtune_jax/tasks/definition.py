"""A user's own source, from a TOML file or from the definition that a manifest carries.

Nothing that decides who may see or use the text has a default: `licence` and `credentialed` must be said. Whether the
`format` exists is checked by `prepare`, which has the readers.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.choice import ChoiceTask
from medtune_jax.tasks.classification import LabelTask, NliTask
from medtune_jax.tasks.extract import ExtractTask
from medtune_jax.tasks.labels import LabelsTask
from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.registry import register
from medtune_jax.tasks.source import SPLITS, UNSTATED, Layout, Published, Source
from medtune_jax.tasks.text import TextTask

TABLE = "table"  # the format whose columns the definition names
CATEGORIES = ("QA", "IE", "GEN", "other")
ANSWER_FORMS = ("letter", "index0", "index1", "text")
OPTION_LETTERS = tuple("ABCDEFGHIJ")
ROW_COLUMNS = ("id", "group", "instruction")  # read only where the definition names them

_KEYS = {
    "name": "a string",
    "task": "a string",
    "types": "a list of strings",
    "labels": "a list of strings",
    "negative": "a string",
    "fields": "a list of strings",
    "ranked": "true or false",
    "single": "true or false",
    "metric": "a string",
    "licence": "a string",
    "credentialed": "true or false",
    "description": "a string",
    "where": "a string",
    "category": "a string",
    "aliases": "a list of strings",
    "wordings": "a list of strings",
    "format": "a string",
    "also": "a list of strings",
    "separator": "a string",
    "answer_form": "a string",
    "files": "a table of strings",
    "columns": "a table of strings",
    "label_names": "a table of strings",
    "gold_sha256": "a table of strings",
    "published": "a list of tables",
}
_REQUIRED = {
    "name": "what the corpus is called in rows and scores",
    "task": "what is asked of its texts",
    "licence": "as its owners state it, or 'unknown': rows and models inherit it, so that it has no default",
    "credentialed": "true where the text may be seen only by people who signed for it; it has no default, so that no "
    "clinical text is shown by mistake",
    "format": "'table' for tsv, csv, json, jsonl and parquet files with columns, or a native format",
    "files": "the file of each split",
}
# Task -> the keys that only some tasks have.
_KEYS_OF_TASK = {
    "ner": ("types", "label_names", "separator"),
    "relation": ("labels", "negative", "label_names"),
    "label": ("labels", "negative", "label_names"),
    "nli": ("label_names",),
    "labels": ("labels", "label_names", "separator"),
    "choice": ("separator", "answer_form"),
    "extract": ("fields", "ranked", "single", "separator"),
    "text": (),
}
_COLUMNS_OF_TASK = {
    "ner": ("tokens", "tags"),
    "relation": ("input", "label"),
    "label": ("input", "label"),
    "nli": ("premise", "hypothesis", "label"),
    "labels": ("input", "labels"),
    "choice": ("question", "options", "answer"),
    "extract": ("input", "items"),
    "text": ("input", "output"),
}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")

Fail = Callable[[str, str], NoReturn]


def read_source_file(path: Path | str) -> Source:
    """Returns the source that a TOML file defines; it is not yet registered.

    Raises:
      UserError: unreadable, not TOML, or a definition that `source_of` refuses; names the file and the key.
    """
    path = Path(path)
    try:
        definition = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); convert the file to UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML: {error}.") from error
    return source_of(definition, str(path))


def source_of(definition: Mapping[str, Any], where: str = "") -> Source:
    """Returns the source of a definition (the keys are in docs/your_own_corpus.md); it is not yet registered.

    Args:
      definition: what a TOML file holds, or what `definition_of` returned.
      where: the file that is named in errors.

    Raises:
      UserError: a key is missing, unknown, of the wrong type or of a value that the task cannot have.
    """
    where = where or f"definition of source '{definition.get('name', '')}'"

    def fail(key: str, problem: str) -> NoReturn:
        raise UserError(f"{where}: {key}: {problem}")

    for key, value in definition.items():
        if key not in _KEYS:
            fail(key, f"unknown key.{did_you_mean(key, _KEYS)}")
        _check_type(key, value, fail)
    for key, meaning in _REQUIRED.items():
        if key not in definition:
            fail(key, f"is missing: {meaning}.")
    kind = definition["task"]
    if kind not in _KEYS_OF_TASK:
        fail("task", f"unknown task '{kind}'.{did_you_mean(kind, _KEYS_OF_TASK)}")
    for key in definition:
        tasks = [task for task, keys in _KEYS_OF_TASK.items() if key in keys]
        if tasks and kind not in tasks:
            fail(key, f"is for task {', '.join(tasks)}; the task here is {kind}.")
    _check_names(definition, fail)
    task = _task(kind, definition, fail)
    layout = _layout(definition, task, fail)
    if not definition.get("wordings") and "instruction" not in layout.columns:
        fail("wordings", "at least one instruction is needed, or columns.instruction where each row brings its own.")
    return Source(
        name=definition["name"],
        task=task,
        layouts=(layout,),
        licence=definition["licence"],
        credentialed=definition["credentialed"],
        description=definition.get("description", ""),
        where=definition.get("where", "the user's own corpus"),
        category=definition.get("category", "IE"),
        splits={digest: split for split, digest in definition.get("gold_sha256", {}).items()},
        published=tuple(_published(entry, fail) for entry in definition.get("published", ())),
        aliases=tuple(definition.get("aliases", ())),
        wordings=tuple(definition.get("wordings", ())),
        definition={key: copy.deepcopy(definition[key]) for key in _KEYS if key in definition},
    )


def definition_of(source: Source) -> dict[str, Any] | None:
    """Returns what `source_of` makes the source from, JSON-ready; None for a built-in source."""
    return None if source.definition is None else copy.deepcopy(dict(source.definition))


def register_definitions(definitions: Mapping[str, Mapping[str, Any]]) -> None:
    """Registers the sources of name -> definition, as manifests and scores carry them.

    Raises:
      UserError: a bad definition, one under another name than its own, or the name of a built-in source.
    """
    for name, definition in definitions.items():
        if not isinstance(definition, Mapping):
            raise UserError(f"The definition of source '{name}' must be an object of keys and values.")
        source = source_of(definition)
        if source.name != name:
            raise UserError(f"The definition under '{name}' is of source '{source.name}'.")
        register(source)


def _check_type(key: str, value: Any, fail: Fail) -> None:
    expected = _KEYS[key]
    texts = isinstance(value, list) and all(isinstance(part, str) for part in value)
    fits = {
        "a string": isinstance(value, str),
        "true or false": isinstance(value, bool),
        "a list of strings": texts,
        "a table of strings": isinstance(value, Mapping),
        "a list of tables": isinstance(value, list) and all(isinstance(part, Mapping) for part in value),
    }
    if not fits[expected]:
        fail(key, f"must be {expected}, found {type(value).__name__}.")
    if isinstance(value, Mapping):
        for name, text in value.items():
            if not isinstance(text, str):
                hint = f" (the key '{name}' must stand above the first [heading])" if name in _KEYS else ""
                fail(f"{key}.{name}", f"must be a string, found {type(text).__name__}{hint}.")


def _check_names(definition: Mapping[str, Any], fail: Fail) -> None:
    for key, names in (("name", [definition["name"]]), ("aliases", definition.get("aliases", []))):
        for name in names:
            if not _NAME.fullmatch(name):
                fail(key, f"'{name}' must start with a letter or digit and hold these, '_', '.' and '-' only.")
    if not definition["licence"].strip():
        fail("licence", f"is blank: write it {_REQUIRED['licence']}.")
    category = definition.get("category", "IE")
    if category not in CATEGORIES:
        fail("category", f"unknown category '{category}'.{did_you_mean(category, CATEGORIES)}")
    for wording in definition.get("wordings", []):
        if not wording.strip():
            fail("wordings", "one of them is blank.")
    for split, digest in definition.get("gold_sha256", {}).items():
        _check_split("gold_sha256", split, fail)
        if not _SHA256.fullmatch(digest):
            fail(f"gold_sha256.{split}", "must be the 64 hex digits that the manifest's gold_sha256 shows.")


def _check_split(key: str, split: str, fail: Fail) -> None:
    if split not in SPLITS:
        fail(f"{key}.{split}", f"unknown split.{did_you_mean(split, SPLITS)}")


def _task(kind: str, definition: Mapping[str, Any], fail: Fail) -> Task:
    key = {"ner": "types", "extract": "fields"}.get(kind, "labels")
    names = tuple(definition.get(key, ()))
    if len(set(names)) != len(names):
        fail(key, "a name stands there twice.")
    if kind in ("relation", "label", "labels") and len(names) < (1 if kind == "labels" else 2):
        fail(key, f"a {kind} task needs its {key}, such as {key} = ['Treats', 'No Relations'].")
    for name in names:
        spaced = kind == "ner" and not re.fullmatch(r"\S+", name)
        if not name or spaced or (kind == "extract" and name in (*ROW_COLUMNS, "input")):
            fail(key, f"'{name}' cannot be one of the {key}.")
    try:
        _build(kind, names, definition, None)
    except ValueError as error:
        fail("negative" if "negative" in str(error) else key, f"{error}.")
    try:
        return _build(kind, names, definition, definition.get("metric"))
    except ValueError as error:
        fail("metric", f"{error}.")


def _build(kind: str, names: Sequence[str], definition: Mapping[str, Any], metric: str | None) -> Task:
    leading: dict[str, Any] = {} if metric is None else {"metric": metric}
    if kind == "ner":
        return NerTask(names, **leading)
    if kind in ("relation", "label"):
        return LabelTask(kind, names, definition.get("negative"), **leading)
    if kind == "nli":
        return NliTask(**leading)
    if kind == "labels":
        return LabelsTask(names, **leading)
    if kind == "choice":
        return ChoiceTask(**leading)
    if kind == "extract":
        forms = {form: definition.get(form, False) for form in ("ranked", "single")}
        return ExtractTask(names, **forms, **leading)
    return TextTask(**leading)


def _layout(definition: Mapping[str, Any], task: Task, fail: Fail) -> Layout:
    files = definition["files"]
    if not files:
        fail("files", "is empty: name the file of at least one split, such as train = 'train.tsv'.")
    for split, file in files.items():
        _check_split("files", split, fail)
        if not file or Path(file).is_absolute():
            fail(f"files.{split}", f"'{file}' must be a path relative to the corpus's folder.")
    columns = definition.get("columns", {})
    if definition["format"] == TABLE:
        known = table_columns(task)
        for name in columns:
            if name not in known:
                fail(f"columns.{name}", f"a {task.kind} table has no such column.{did_you_mean(name, known)}")
    else:
        for key in ("label_names", "separator", "answer_form"):
            if key in definition:
                fail(key, f"is for format '{TABLE}' only; the format here is '{definition['format']}'.")
    answer_form = definition.get("answer_form", "letter")
    if answer_form not in ANSWER_FORMS:
        fail("answer_form", f"unknown form '{answer_form}'.{did_you_mean(answer_form, ANSWER_FORMS)}")
    label_names = definition.get("label_names", {})
    labels = task.tags if isinstance(task, NerTask) else task.labels
    for native, label in label_names.items():
        if label not in labels:
            fail(f"label_names.{native}", f"'{label}' is no label of the task.{did_you_mean(label, labels)}")
    return Layout(
        format=definition["format"],
        files=dict(files),
        also=tuple(definition.get("also", ())),
        columns=dict(columns),
        label_names=dict(label_names),
        separator=definition.get("separator", ""),
        answer_form=answer_form,
    )


def table_columns(task: Task) -> tuple[str, ...]:
    """Returns what `columns` may name for a table of this task; a name left out is the column's own name."""
    if isinstance(task, ExtractTask) and task.fields:
        return ("input", *task.fields, *ROW_COLUMNS)
    letters = OPTION_LETTERS if task.kind == "choice" else ()
    return (*_COLUMNS_OF_TASK[task.kind], *letters, *ROW_COLUMNS)


def _published(entry: Mapping[str, Any], fail: Fail) -> Published:
    given = {"split": UNSTATED, "n": 0, **entry}
    for key in ("model", "metric", "value", "cited", *given):
        if key not in ("model", "metric", "value", "split", "n", "cited"):
            fail(f"published.{key}", "unknown key; a figure has model, metric, value, cited, and where known split, n.")
        if key not in given:
            fail(f"published.{key}", "is missing: a figure without its source cannot be compared.")
        expected = {"value": (int, float), "n": (int,)}.get(key, (str,))
        if not isinstance(given[key], expected) or isinstance(given[key], bool):
            fail(f"published.{key}", f"must be {'a number' if key in ('value', 'n') else 'a string'}.")
    if not 0 <= given["value"] <= 1:
        fail("published.value", f"{given['value']} is not in 0..1; write 0.8718 for 87.18.")
    return Published(**given)

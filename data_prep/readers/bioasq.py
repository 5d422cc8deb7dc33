"""BioASQ task b: questions with golden answers as JSON, one kind of question per source."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from medtune_jax.data_prep.native import ANY, Ask, NativeFile, Record, label_of
from medtune_jax.data_prep.readers.json_files import json_object, text_at
from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.text import clean_text

_EXPECTED = "a question with id, type, body, exact_answer, snippets"
_TYPES = ("yesno", "factoid", "list", "summary")


def read_bioasq(path: Path, task: Task, ask: Ask = ANY, *, type: str) -> NativeFile:
    """Returns the questions of one type with what the snippets say, in the order of the files' names.

    The input is the snippets' texts, a line each, and a last line `Question: `. The answer of a yes/no question is its
    label; that of a factoid is one item with all its names, in however many lists they stand (OUR reading of files
    that write them in both ways); that of a list is an item, with its synonyms, per inner list or string. Questions of
    other types and those without an exact answer are dropped and counted.

    Args:
      path: a file, or a folder with the files of several batches (`*.json`).
      type: yesno, factoid or list.

    A question whose id stood in an earlier file or batch is dropped and counted: later files repeat earlier ones'.

    Raises:
      UserError: with the file and the question's id: a key missing, unknown type or label; with file and line: not
        JSON; with the file or folder: not UTF-8, no questions.
    """
    found = NativeFile()
    ids: set[str] = set()
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    for where, question in (pair for file in files for pair in _questions(file)):
        kind = text_at(question, "type", where, _EXPECTED)
        if kind not in _TYPES:
            raise UserError(f"{where}: unknown type '{kind}'.{did_you_mean(kind, _TYPES)}")
        if kind != type:
            found.dropped[f"a {kind} question"] += 1
            continue
        answer = question.get("exact_answer")
        if not answer:
            found.dropped["no exact_answer"] += 1
            continue
        input = "\n".join(
            [*_snippets(question, where), f"Question: {' '.join(text_at(question, 'body', where, _EXPECTED).split())}"]
        )
        annotation: tuple[str, Any]
        if type == "yesno":
            label = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
            annotation = (input, label_of(str(label).strip().rstrip("."), task.labels, where, "exact_answer"))
        else:
            items = _items(answer, where)
            if type == "factoid":
                items = (tuple(dict.fromkeys(name for item in items for name in item)),)
            annotation = (input, (items,))
        id = text_at(question, "id", where, _EXPECTED)
        if id in ids:
            found.dropped["a question that was there before"] += 1
            continue
        ids.add(id)
        found.records.append(Record(annotation, id=id))
    if not found.records and not found.dropped:
        raise UserError(f"{path}: no questions in it; BioASQ's golden *.json files are expected.")
    return found


def _questions(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    questions = json_object(file).get("questions")
    if not isinstance(questions, list):
        raise UserError(f"{file}: no list 'questions'; expected {{\"questions\": [..]}}.")
    for number, question in enumerate(questions):
        if not isinstance(question, dict):
            raise UserError(f"{file}, questions[{number}]: expected {_EXPECTED}.")
        name = question.get("id")
        yield f"{file}, question {name}" if isinstance(name, str) else f"{file}, questions[{number}]", question


def _snippets(question: dict[str, Any], where: str) -> list[str]:
    snippets = question.get("snippets", [])
    if not isinstance(snippets, list) or not all(isinstance(snippet, dict) for snippet in snippets):
        raise UserError(f"{where}: 'snippets' is no list of objects with text; expected {_EXPECTED}.")
    return [" ".join(text_at(snippet, "text", where, "a snippet with text").split()) for snippet in snippets]


def _items(answer: Any, where: str) -> tuple[tuple[str, ...], ...]:
    """Returns each item's distinct names; a string alone is an item with one name."""
    items = []
    for item in answer if isinstance(answer, list) else [answer]:
        names = item if isinstance(item, list) else [item]
        if not all(isinstance(name, str) for name in names):
            raise UserError(f"{where}: exact_answer {answer!r}; expected strings, or lists of synonyms.")
        tidied = tuple(dict.fromkeys(filter(None, map(clean_text, names))))
        if tidied:
            items.append(tidied)
    if not items:
        raise UserError(f"{where}: exact_answer {answer!r} holds no text.")
    return tuple(items)


READERS = {f"bioasq_{type}": partial(read_bioasq, type=type) for type in ("yesno", "factoid", "list")}

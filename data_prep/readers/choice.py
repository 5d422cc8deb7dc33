"""Multiple-choice questions in native form: MedQA and MedMCQA."""

from __future__ import annotations

import re
from pathlib import Path
from string import ascii_uppercase

from medtune_jax.data_prep.native import ANY, Ask, NativeFile, Record, not_empty
from medtune_jax.data_prep.readers.json_files import json_objects, text_at
from medtune_jax.errors import UserError
from medtune_jax.tasks.base import Task

_MEDQA = "an object with question, options (A, B, ..), answer_idx"
_MEDMCQA = "an object with question, opa, opb, opc, opd, cop"
_LETTERS = "ABCD"
_LETTER_OPTION = re.compile(r"[a-d]{1,2}", re.IGNORECASE)  # the option "ac": statements a and c of a list


def read_medqa(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (question, options, letter) of every JSON line, with four options or five.

    Raises:
      UserError: with file and line: not a JSON object, a key missing, options not lettered from A, an answer letter
        that is none of them; with the file: not UTF-8, no rows.
    """
    found = NativeFile()
    for where, item in json_objects(path):
        question = text_at(item, "question", where, _MEDQA)
        letter = text_at(item, "answer_idx", where, _MEDQA)
        by_letter = item.get("options")
        letters = sorted(by_letter) if isinstance(by_letter, dict) else []
        if len(letters) < 2 or letters != [*ascii_uppercase[: len(letters)]]:
            raise UserError(f"{where}: no 'options' under the letters A, B, ..; expected {_MEDQA}.")
        options = tuple(_one_line(text_at(by_letter, name, where, _MEDQA)) for name in letters)
        if letter not in letters:
            raise UserError(f"{where}: answer_idx '{letter}' is none of the options {', '.join(letters)}.")
        meta = {"step": item["meta_info"]} if isinstance(item.get("meta_info"), str) else {}
        found.records.append(Record((question, options, letter), meta=meta))
    return not_empty(found, path, "JSON lines with question, options, answer_idx")


def read_medmcqa(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (question, options, letter) of every JSON line; lines without `cop` (the withheld answers of the test
    file) are dropped and counted.

    Defects of the corpus stay in and are told in meta: `gold_repeated` where another option has the gold one's text,
    `letter_options` where two options or more are just letters ("a", "ac"), choice_type `multi` although one answer is
    given.

    Raises:
      UserError: with file and line: not a JSON object, a key missing, a `cop` that is not 1 to 4; with the file: not
        UTF-8, nothing in it.
    """
    found = NativeFile()
    for where, item in json_objects(path):
        cop = item.get("cop")
        if cop is None:
            found.dropped["no cop: the answer is withheld"] += 1
            continue
        if cop not in (1, 2, 3, 4) or isinstance(cop, bool):
            hint = " (a file that counts from 0, as the hub's copy, is another form)" if cop == 0 else ""
            raise UserError(f"{where}: cop {cop!r} is not the number of an option, 1 to 4{hint}.")
        question = text_at(item, "question", where, _MEDMCQA)
        options = tuple(_one_line(text_at(item, f"op{letter.lower()}", where, _MEDMCQA)) for letter in _LETTERS)
        meta = {key: item[key] for key in ("subject_name", "choice_type") if isinstance(item.get(key), str)}
        if options.count(options[cop - 1]) > 1:
            meta["gold_repeated"] = True
        if sum(_LETTER_OPTION.fullmatch(option) is not None for option in options) > 1:
            meta["letter_options"] = True
        name = item.get("id")
        found.records.append(
            Record((question, options, _LETTERS[cop - 1]), id=name if isinstance(name, str) else "", meta=meta)
        )
    return found if found.dropped else not_empty(found, path, "JSON lines with question, opa .. opd, cop")


def _one_line(option: str) -> str:
    return " ".join(option.split())


READERS = {"medqa": read_medqa, "medmcqa": read_medmcqa}

"""Collections of instructions and consultations as JSON: ChatDoctor, PMC-LLaMA, BioInstruct, iCliniq."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medtune_jax.data_prep.native import ANY, Ask, NativeFile, Record, not_empty
from medtune_jax.data_prep.readers.json_files import json_objects, text_at
from medtune_jax.tasks.base import Task

_EXPECTED = "an object with instruction, input, output"

# The category of an instruction: OUR assumption, since neither paper nor data card says how BioInstruct's rows were
# sorted. The card gives the shares QA 22.8 %, IE 33.8 %, GEN 33.5 %, other 10.0 %; how far these rules are from them is
# not known, as the file was not at hand.
_CATEGORIES = (
    (
        "IE",
        r"\b(extract|identify|list|find|locate|highlight|name|recognis\w*|recogniz\w*|classif\w+|categori[sz]\w+|label|"
        r"tag|determine (whether|if|the (presence|type|category|class))|match|detect|select|assign|rank|infer)\b",
    ),
    (
        "GEN",
        r"\b(write|generate|compose|draft|create|develop|design|summari[sz]\w+|paraphrase|rewrite|rephrase|simplify|"
        r"translate|convert|prepare|devise|formulate|produce|construct|propose|suggest|recommend|outline)\b",
    ),
    (
        "QA",
        r"\?|\b(answer|what|which|why|how|when|who|explain|describe|discuss|define|compare|state|provide|give|tell|"
        r"calculate|interpret|choose)\b",
    ),
)
_COMPILED = tuple((category, re.compile(pattern)) for category, pattern in _CATEGORIES)


def category_of(instruction: str) -> str:
    """Returns IE, GEN, QA or other, by the words of an instruction (OUR assumption, see above).

    The word that comes first decides, of the first sentence if it has one: the main verb mostly stands there.
    """
    folded = instruction.casefold()
    for text in (re.split(r"(?<=[.?!:])\s", folded, maxsplit=1)[0], folded):
        starts = {category: found.start() for category, pattern in _COMPILED if (found := pattern.search(text))}
        if starts:
            return min(starts, key=lambda category: starts[category])
    return "other"


def _read(path: Path, read_one: Callable[[Mapping[str, Any], str], Record], own: bool = False) -> NativeFile:
    """Returns a record per object; an empty output is dropped and counted: it holds nothing to learn or to score. So is
    an empty instruction where the objects bring their `own`."""
    found = NativeFile()
    for where, item in json_objects(path):
        record = read_one(item, where)
        if not record.annotation[1]:
            found.dropped["empty output"] += 1
        elif own and not record.instruction:
            found.dropped["empty instruction"] += 1
        else:
            found.records.append(record)
    return not_empty(found, path, "JSON objects, in a list or one per line")


def _pair(item: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Returns (input, output); the input may be null, as an instruction may need none."""
    input = "" if item.get("input", "") is None else text_at(item, "input", where, _EXPECTED)
    return input, text_at(item, "output", where, _EXPECTED)


def read_consultations(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (input, output) of every object; its instruction, the same sentence in all of the file, is left out.

    Raises:
      UserError: with file and line: not JSON, a key missing; with the file: not UTF-8, no rows.
    """
    return _read(path, lambda item, where: Record(_pair(item, where)))


def read_instructions(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (input, output) with the object's own instruction; meta holds its `category` (see `category_of`).

    Raises:
      UserError: with file and line: not JSON, a key missing; with the file: not UTF-8, no rows.
    """

    def read_one(item: Mapping[str, Any], where: str) -> Record:
        instruction = text_at(item, "instruction", where, _EXPECTED)
        return Record(_pair(item, where), instruction=instruction, meta={"category": category_of(instruction)})

    return _read(path, read_one, own=True)


def read_pmc_llama(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (input, output) with the object's own instruction; meta holds its `subsource` (medqa_train, medmcqa,
    pubmedqa.ori_pqaa, liveqa, medicationqa, umls, umls_relation).

    Raises:
      UserError: with file and line: not JSON, a key missing; with the file: not UTF-8, no rows.
    """
    expected = f"{_EXPECTED}, source"

    def read_one(item: Mapping[str, Any], where: str) -> Record:
        return Record(
            _pair(item, where),
            instruction=text_at(item, "instruction", where, expected),
            meta={"subsource": text_at(item, "source", where, expected)},
        )

    return _read(path, read_one, own=True)


def read_icliniq(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (input, answer_icliniq) of every object: the physician's answer, not those of the two models beside it.

    Raises:
      UserError: with file and line: not JSON, a key missing; with the file: not UTF-8, no rows.
    """
    expected = "an object with input, answer_icliniq"

    def read_one(item: Mapping[str, Any], where: str) -> Record:
        return Record((text_at(item, "input", where, expected), text_at(item, "answer_icliniq", where, expected)))

    return _read(path, read_one)


READERS = {
    "consultations": read_consultations,
    "instructions": read_instructions,
    "pmc_llama": read_pmc_llama,
    "icliniq": read_icliniq,
}

"""i2b2/VA 2010 relations: the folders of concept, relation and text files as distributed.

A row is a pair of concepts of one line, both written as markers (`@problem$`); pairs without an annotated relation are
`No Relations`. As in BLUE, all pairs count, also those of types that no relation joins.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from medtune_jax.data_prep.native import (
    ANY,
    Ask,
    NativeFile,
    Record,
    label_of,
    not_empty,
    numbered_lines,
    with_negative,
)
from medtune_jax.data_prep.readers.indexed_tsv import blue_labels
from medtune_jax.data_prep.readers.markers import mark
from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.tasks.base import Task

TYPES = ("problem", "test", "treatment")
_CONCEPT = re.compile(r'c="(?P<text>.*)" (\d+):(\d+) (\d+):(\d+)\|\|t="(?P<type>[^"]*)"')
_RELATION = re.compile(
    r'c="(?P<one>.*)" (\d+):(\d+) (\d+):(\d+)\|\|r="(?P<label>[^"]*)"\|\|c="(?P<other>.*)" (\d+):(\d+) (\d+):(\d+)'
)
_CONCEPT_FORM = 'c="text" line:token line:token||t="problem"'
_RELATION_FORM = 'c="text" line:token line:token||r="TrAP"||c="text" line:token line:token'


@dataclass(frozen=True)
class Concept:
    """A concept of one line: its line in the text, its characters [start, end) there, and its line in the .con file
    (all from 0)."""

    line: int
    start: int
    end: int
    type: str
    number: int


def read_folders(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (sentence with markers, label) of every pair of concepts of a line, in a folder of the distribution.

    The folder, or each of its subfolders in order of name (beth, partners), holds `txt/NAME.txt`, `concept/NAME.con`
    (or `concepts/`) and `rel/NAME.rel`; the texts may also lie in `test_data/` beside it, as those of the test set do.
    Documents come in order of name, pairs in the order of the .con file. A pair with several relations gives a row for
    each, in the order of the .rel file (in BLUE's rows from the last to the first, and documents in no stated order);
    a relation across lines is dropped. Ids are those of BLUE, `NAME.NAME.con.lI.NAME.con.lJ` with I and J the
    lines in the .con file from 0.

    Raises:
      UserError: with the file: a document lacks one of its three files, not UTF-8, no such folders; with file and line:
        not of the form, a token beyond the text, another text than stands there, an unknown type or label, a relation
        whose concept is not in the .con file.
    """
    _, negative = with_negative(task)
    found = NativeFile()
    for part in _parts(path):
        for text, concepts, relations in _documents(part):
            lines = [line for _, line in numbered_lines(text)]
            known = _read_concepts(concepts, lines)
            related = _read_relations(relations, lines, known, task, found.dropped)
            name = text.stem
            for one, other in combinations(known, 2):
                if one.line != other.line:
                    continue
                sentence = mark(lines[one.line], (one.start, one.end, one.type), (other.start, other.end, other.type))
                id = f"{name}.{name}.con.l{one.number}.{name}.con.l{other.number}"
                for label in related.pop(frozenset((one, other)), [negative]):
                    found.records.append(Record((sentence, label), id=id, group=name))
    return not_empty(found, path, "pair of concepts of one line")


def _parts(path: Path) -> list[Path]:
    """Returns the folders that hold `rel`: this one, or its subfolders."""
    inside = sorted(path.iterdir()) if path.is_dir() else []
    parts = [folder for folder in (path, *inside) if (folder / "rel").is_dir()]
    if not parts:
        raise UserError(f"{path}: no folder rel in it or its subfolders; txt, concept and rel are expected.")
    return parts


def _documents(part: Path) -> Iterator[tuple[Path, Path, Path]]:
    """Yields the text, concept and relation file of every document."""
    texts = part / "txt" if (part / "txt").is_dir() else part.parent / "test_data"
    concepts = part / "concepts" if (part / "concepts").is_dir() else part / "concept"
    folders = {".txt": texts, ".con": concepts, ".rel": part / "rel"}
    for suffix, folder in folders.items():
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; it holds the {suffix} files of {part}.")
    stems = {suffix: {file.stem for file in folder.glob(f"*{suffix}")} for suffix, folder in folders.items()}
    for stem in sorted(set().union(*stems.values())):
        files = {suffix: folder / f"{stem}{suffix}" for suffix, folder in folders.items()}
        for suffix, file in files.items():
            if stem not in stems[suffix]:
                other = next(files[having] for having in files if stem in stems[having])
                raise UserError(f"{file}: no such file, but there is {other}; a document has .txt, .con and .rel.")
        yield files[".txt"], files[".con"], files[".rel"]


def _read_concepts(path: Path, lines: Sequence[str]) -> list[Concept]:
    concepts = []
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        match = _CONCEPT.match(line)
        if match is None:
            raise UserError(f"{where}: {_CONCEPT_FORM} is expected.")
        if match["type"] not in TYPES:
            raise UserError(f"{where}: unknown type '{match['type']}'.{did_you_mean(match['type'], TYPES)}")
        place = _place(match.groups()[1:5], match["text"], lines, where)
        concepts.append(Concept(*place, match["type"], number - 1))
    return concepts


def _read_relations(
    path: Path, lines: Sequence[str], concepts: Sequence[Concept], task: Task, dropped: Counter[str]
) -> dict[frozenset[Concept], list[str]]:
    """Returns the labels of each related pair of a line, in file order; counts other relations as dropped."""
    by_place: dict[tuple[int, int, int], Concept] = {}
    for concept in concepts:
        by_place.setdefault((concept.line, concept.start, concept.end), concept)
    labels = blue_labels(task)
    related: dict[frozenset[Concept], list[str]] = {}
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        match = _RELATION.match(line)
        if match is None:
            raise UserError(f"{where}: {_RELATION_FORM} is expected.")
        label = label_of(match["label"], labels, where)
        groups = match.groups()
        pair = []
        for text, place in ((match["one"], groups[1:5]), (match["other"], groups[7:11])):
            found = by_place.get(_place(place, text, lines, where))
            if found is None:
                raise UserError(f'{where}: no concept "{text}" at {place[0]}:{place[1]} in the .con file.')
            pair.append(found)
        if pair[0].line != pair[1].line:
            dropped["relation across lines"] += 1
            continue
        related.setdefault(frozenset(pair), []).append(label)
    return related


def _place(numbers: Sequence[str], text: str, lines: Sequence[str], where: str) -> tuple[int, int, int]:
    """Returns (line, start, end) of the tokens `line:first line:last`; lines count from 1, tokens from 0.

    Tokens are parted by white space; white space at the start of a line makes an empty token 0.
    """
    first_line, first, last_line, last = map(int, numbers)
    if first_line != last_line:
        raise UserError(f"{where}: a concept of one line is expected, found {first_line} to {last_line}.")
    if not 1 <= first_line <= len(lines):
        raise UserError(f"{where}: line {first_line} is beyond the {len(lines)} lines of the text.")
    line = lines[first_line - 1]
    tokens = [(match.start(), match.end()) for match in re.finditer(r"\S+", line)]
    if line[:1].isspace():
        tokens.insert(0, (0, 0))
    if not first <= last < len(tokens):
        raise UserError(f"{where}: tokens {first} to {last} are not in line {first_line}, which has {len(tokens)}.")
    start, end = tokens[first][0], tokens[last][1]
    if line[start:end].casefold() != text.casefold():
        raise UserError(f"{where}: '{text}' is expected at {first_line}:{first}, the text has '{line[start:end]}'.")
    return first_line - 1, start, end


READERS = {"i2b2_2010": read_folders}

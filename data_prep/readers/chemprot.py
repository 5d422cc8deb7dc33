"""ChemProt: the BioCreative VI distribution.

The distribution has per split a folder with `*_abstracts*.tsv` (PMID, title, abstract), `*_entities*.tsv` (PMID, id,
type, start, end, text) and `*_relations*.tsv` (PMID, class, evaluated, name, Arg1:id, Arg2:id), without headers.
Offsets count characters of the title, one space and the abstract.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

from medtune_jax.data_prep.native import ANY, Ask, NativeFile, Record, not_empty, numbered_lines, with_negative
from medtune_jax.data_prep.readers.markers import mark
from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.classification import LabelTask

_TYPES = {"CHEMICAL": "CHEMICAL", "GENE": "GENE", "GENE-Y": "GENE", "GENE-N": "GENE"}
_COLUMNS = {
    "abstracts": ("PMID", "title", "abstract"),
    "entities": ("PMID", "id", "type", "start", "end", "text"),
    "relations": ("PMID", "class", "evaluated", "name", "Arg1:id", "Arg2:id"),
}
_CLASS = re.compile(r"CPR:\d+")
_END = re.compile(r"[.?!]\s+(?=[A-Z])")
_ABBREVIATION = re.compile(r"(?:\b(?:i\.v|i\.p|e\.g|i\.e|vs|cf|ca|Fig|Dr|al|approx|resp)|\b[A-Z])\.$")


@dataclass(frozen=True)
class Entity:
    """An entity's id, marker type, and characters [start, end) in title, space and abstract."""

    id: str
    type: str
    start: int
    end: int


def read_distribution(path: Path, task: Task, ask: Ask = ANY) -> NativeFile:
    """Returns (sentence with markers, class) of every pair of a chemical and a gene in one sentence.

    A pair has a row for each of its evaluated classes (those of the task), once; a class that is not evaluated is read
    as no relation, as in BLUE, and counted. Entities whose text is not at their offsets and relations that join no
    chemical and gene of one sentence are dropped and counted. Ids are those of BLUE, `PMID.CHEMICAL.GENE`; the group is
    the PMID.

    Where rows differ from those of BLUE's create_chemprot_bert.py: sentences are those of `sentences`, not of its
    tokenizer, so that their number may differ; the text keeps its characters, which BLUE transliterates to ASCII (Greek
    letters by name); names of markers as said at `mark`; the genes of a sentence and the classes of a pair come in the
    order of the files, BLUE's with GENE-N before GENE-Y and the classes from the last to the first; a class named twice
    for a pair is one row; the arguments of a relation may stand in either order; the type GENE is taken too.

    Raises:
      UserError: with the file: not one file of each kind in the folder, not UTF-8, texts of most entities not at their
        offsets; with file and line: other columns, offsets that are no numbers or beyond the text, an unknown type or
        class, an abstract or entity that is not there.
    """
    labelled, negative = with_negative(task)
    found = NativeFile()
    abstracts = _read_abstracts(_file(path, "abstracts"))
    entities = _read_entities(_file(path, "entities"), abstracts, found)
    related = _read_relations(_file(path, "relations"), entities, labelled, found)
    for pmid, (title, text) in abstracts.items():
        known = list(entities.get(pmid, {}).values())
        for start, end in sentences(text, len(title), [(entity.start, entity.end) for entity in known]):
            inside = [entity for entity in known if start <= entity.start and entity.end <= end]
            chemicals = [entity for entity in inside if entity.type == "CHEMICAL"]
            for chemical, gene in product(chemicals, [entity for entity in inside if entity.type == "GENE"]):
                sentence = mark(
                    text[start:end],
                    (chemical.start - start, chemical.end - start, chemical.type),
                    (gene.start - start, gene.end - start, gene.type),
                    both="CHEM-GENE",
                )
                id = f"{pmid}.{chemical.id}.{gene.id}"
                for label in related.pop((pmid, frozenset((chemical.id, gene.id))), [negative]):
                    found.records.append(Record((sentence, label), id=id, group=pmid))
    if related:
        found.dropped["relation that joins no chemical and gene of one sentence"] += sum(map(len, related.values()))
    return not_empty(found, path, "pair of a chemical and a gene in a sentence")


def sentences(text: str, title: int, entities: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the [start, end) of the sentences of a title (its first `title` characters) and an abstract.

    A sentence ends at the end of the title, and after `.`, `?` or `!` where white space and then a capital of A to Z
    follow, unless an abbreviation such as `e.g.`, `Fig.` or a single capital (`E. coli`) comes before, or an entity
    goes on over the place.
    """
    ends = {title} if title else set()
    for match in _END.finditer(text):
        at = match.start() + 1
        if not _ABBREVIATION.search(text, max(0, at - 10), at):
            ends.add(at)
    free = [end for end in sorted(ends) if not any(first < end < last for first, last in entities)]
    found = []
    for start, end in pairwise([0, *free, len(text)]):
        own = text[start:end]
        if own.strip():
            begin = start + len(own) - len(own.lstrip())
            found.append((begin, begin + len(own.strip())))
    return found


def _file(folder: Path, kind: str) -> Path:
    files = sorted(folder.glob(f"*_{kind}*.tsv")) if folder.is_dir() else []
    if len(files) != 1:
        raise UserError(
            f"{folder}: one file *_{kind}.tsv is expected (in the test set *_{kind}_gs.tsv), found {len(files)}."
        )
    return files[0]


def _rows(path: Path, kind: str) -> Iterator[tuple[str, list[str]]]:
    """Yields file:line and columns."""
    columns = _COLUMNS[kind]
    for number, line in numbered_lines(path):
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != len(columns):
            raise UserError(f"{path}:{number}: {'<TAB>'.join(columns)} is expected, found {len(fields)} column(s).")
        yield f"{path}:{number}", fields


def _read_abstracts(path: Path) -> dict[str, tuple[str, str]]:
    """Returns PMID -> (title, title and abstract)."""
    found = {}
    for where, (pmid, title, abstract) in _rows(path, "abstracts"):
        if pmid in found:
            raise UserError(f"{where}: a second abstract of PMID {pmid}.")
        found[pmid] = (title, f"{title} {abstract}")
    return found


def _read_entities(
    path: Path, abstracts: dict[str, tuple[str, str]], native: NativeFile
) -> dict[str, dict[str, Entity]]:
    """Returns PMID -> id -> entity."""
    found: dict[str, dict[str, Entity]] = {}
    misplaced = total = 0
    for where, (pmid, id, type, start, end, own) in _rows(path, "entities"):
        if pmid not in abstracts:
            raise UserError(f"{where}: no abstract of PMID {pmid}.")
        if type not in _TYPES:
            raise UserError(f"{where}: unknown type '{type}'.{did_you_mean(type, _TYPES)}")
        text = abstracts[pmid][1]
        if not (start.isdecimal() and end.isdecimal() and int(start) < int(end) <= len(text)):
            raise UserError(f"{where}: offsets {start} to {end} are not in the {len(text)} characters of PMID {pmid}.")
        entity = Entity(id, _TYPES[type], int(start), int(end))
        found.setdefault(pmid, {})[id] = entity
        total += 1
        if text[entity.start : entity.end] != own:
            misplaced += 1
            found[pmid][id] = Entity(id, "", entity.start, entity.end)  # of no type, so in no pair
    if 2 * misplaced > total:
        raise UserError(
            f"{path}: the text of {misplaced} of {total} entities is not at their offsets in the abstracts."
        )
    if misplaced:
        native.dropped["entity whose text is not at its offsets"] += misplaced
    return found


def _read_relations(
    path: Path, entities: dict[str, dict[str, Entity]], task: LabelTask, native: NativeFile
) -> dict[tuple[str, frozenset[str]], list[str]]:
    """Returns (PMID, ids of the pair) -> evaluated classes in file order, each once."""
    found: dict[tuple[str, frozenset[str]], list[str]] = {}
    for where, (pmid, label, _, _, one, other) in _rows(path, "relations"):
        if not _CLASS.fullmatch(label):
            raise UserError(f"{where}: unknown class '{label}'; CPR:1 to CPR:10 are expected.")
        ids = [argument.partition(":")[2] for argument in (one, other)]
        for id in ids:
            if id not in entities.get(pmid, {}):
                raise UserError(f"{where}: no entity '{id}' of PMID {pmid}; Arg1:id and Arg2:id are expected.")
        if label not in task.labels:
            native.dropped["relation of a class that is not evaluated, read as none"] += 1
            continue
        labels = found.setdefault((pmid, frozenset(ids)), [])
        if label not in labels:
            labels.append(label)
    return found


READERS = {"chemprot": read_distribution}

"""Finds the raw files of sources and renders a native split as rows."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medtune_jax.data_prep.counts import differences, gold_counts, group_count
from medtune_jax.data_prep.native import Ask, GadPolarity, Record
from medtune_jax.data_prep.readers import gad, reader_for
from medtune_jax.data_prep.wordings import choose, wordings_of
from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.tasks.definition import definition_of
from medtune_jax.tasks.registry import SOURCES
from medtune_jax.tasks.rows import Row, gold_sha256, rows_sha256
from medtune_jax.tasks.source import Layout, Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a source was looked for.

    Attributes:
      folder: its raw folder, None where there is none.
      looked: that folder, or the one in which it was expected.
      layout: the form in which it lies there, the source's first one where it does not.
      absent: the files of the layout that are not there.
    """

    source: Source
    folder: Path | None
    looked: Path
    layout: Layout
    absent: tuple[str, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that can be read here, in the layout's order."""
        if self.folder is None or any(file in self.absent for file in self.layout.also):
            return ()
        return tuple(split for split, file in self.layout.files.items() if file not in self.absent)


def locate(source: Source, raw_dir: Path | None, folders: Mapping[str, Path]) -> Place:
    """Returns where a source lies.

    Args:
      raw_dir: folder of folders named as sources, their shared folder or an alias, in any case.
      folders: source -> its folder, which comes before raw_dir.
    """
    folder = folders.get(source.name) or _named_folder(raw_dir, source)
    looked = folder or (raw_dir or Path("--raw_dir")) / (source.folder or source.name)
    layout = _layout_in(folder, source)
    absent = tuple(file for file in files_of(layout) if folder is None or not (folder / file).exists())
    return Place(source, folder, looked, layout, absent)


def _named_folder(raw_dir: Path | None, source: Source) -> Path | None:
    if raw_dir is None:
        return None
    present = subfolders(raw_dir)
    names = [name for name in (source.folder, source.name, *source.aliases) if name]
    exact = (raw_dir / name for name in names if name in present)
    in_any_case = (raw_dir / found for name in names for found in present if found.casefold() == name.casefold())
    return next(exact, None) or next(in_any_case, None)


def subfolders(raw_dir: Path) -> list[str]:
    """Returns the names of the folders in raw_dir, sorted, without hidden ones.

    Raises:
      UserError: there is no such folder.
    """
    if not raw_dir.is_dir():
        raise UserError(f"--raw_dir={raw_dir}: no such folder.")
    return sorted(path.name for path in raw_dir.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def unregistered(raw_dir: Path | None) -> list[str]:
    """Returns a warning for each folder in raw_dir that no source is named as."""
    if raw_dir is None:
        return []
    known = {
        name.casefold(): name
        for source in SOURCES.values()
        for name in (source.name, source.folder, *source.aliases)
        if name
    }
    return [
        f"Folder {raw_dir / name} is skipped: no source has this name.{did_you_mean(name, SOURCES)} "
        "For a corpus of your own give --source_file."
        for name in subfolders(raw_dir)
        if name.casefold() not in known
    ]


def _layout_in(folder: Path | None, source: Source) -> Layout:
    """Returns the first layout of which a split's file is in the folder; the source's first one where none is."""
    for layout in source.layouts:
        if folder is not None and any((folder / file).exists() for file in layout.files.values()):
            return layout
    return source.layouts[0]


def files_of(layout: Layout) -> list[str]:
    """Returns the files of a layout, each once, the splits' before the others."""
    return list(dict.fromkeys([*layout.files.values(), *layout.also]))


def lack(place: Place, splits: Sequence[str] = ()) -> dict[str, Any]:
    """Returns what is missing of a source and how it is got, JSON-ready.

    `paths` is where the absent files of the layout are looked for, `formats` every form that would be read.

    Args:
      splits: the splits wanted; all where empty.
    """
    source, layout = place.source, place.layout
    if any(split not in layout.files for split in splits):
        layout = next(other for other in source.layouts if all(split in other.files for split in splits))
    wanted = list(dict.fromkeys([layout.files[split] for split in splits or layout.files] + list(layout.also)))
    absent = [file for file in wanted if place.folder is None or not (place.folder / file).exists()]
    absent = absent or wanted  # all are there, but beside files of another form, which comes first
    return {
        "source": source.name,
        "files": absent,
        "paths": [str(place.looked / file) for file in absent],
        "formats": [{"format": layout.format, "files": files_of(layout)} for layout in source.layouts],
        "where": source.where,
        "licence": source.licence,
        "credentialed": source.credentialed,
    }


def lack_text(missing: Mapping[str, Any]) -> str:
    """Returns what to know of a missing source in one line: files, folder, formats, licence, where to get it."""
    signed = f" It is credentialed: also give --i_have_signed={missing['source']}." if missing["credentialed"] else ""
    others = "; or ".join(f"{', '.join(form['files'])} ({form['format']})" for form in missing["formats"])
    return (
        f"{missing['source']} is missing: no {', '.join(missing['files'])} in {Path(missing['paths'][0]).parent}. "
        f"Read as: {others}. Licence: {missing['licence']}.{signed} How to get it: {missing['where']}."
    )


def describe(source: Source, gad_polarity: GadPolarity = "association") -> dict[str, Any]:
    """Returns what the manifest says of a source; its `splits` are still empty."""
    definition = definition_of(source)
    return {
        "task": source.task.kind,
        "category": source.category,
        "description": source.description,
        "licence": source.licence,
        "credentialed": source.credentialed,
        "where": source.where,
        "wordings": list(wordings_of(source, gad_polarity)),
        "splits": {},
        **({"definition": definition} if definition else {}),
    }


def read_split(place: Place, split: str, seed: int, gad_polarity: GadPolarity) -> tuple[list[Row], dict[str, Any]]:
    """Returns the rows of one native split, in file order, and what the manifest says of them.

    Raises:
      UserError: a file is malformed, the format is unknown, a row has no instruction.
    """
    source, layout = place.source, place.layout
    read = reader_for(source, layout.format)
    assert place.folder is not None
    path = place.folder / layout.files[split]
    native = read(path, source.task, Ask(split, layout, gad_polarity))
    wordings = wordings_of(source, gad_polarity)
    rows = [_row(source, split, number, record, wordings, seed, path) for number, record in enumerate(native.records)]
    gold = gold_sha256(rows)
    facts: dict[str, Any] = {
        "rows": len(rows),
        **group_count(native.records),
        **gold_counts(source.task, native.records),
        "file": layout.files[split],
        "format": layout.format,
        "raw_sha256": _raw_sha256([path, *(place.folder / name for name in layout.also)]),
        "rows_sha256": rows_sha256(rows),
        "gold_sha256": gold,
        "official_split": source.splits.get(gold),
        "dropped": dict(sorted(native.dropped.items())),
        "expected": dict(source.expected.get(split, {})),
    }
    facts["differs"] = differences(facts["expected"], facts)
    if layout.format in gad.READERS:
        facts["gad_polarity"] = gad_polarity
    logger.info("read %s %s: %d rows", source.name, split, len(rows))
    return rows, facts


def _row(
    source: Source, split: str, number: int, record: Record, wordings: Sequence[str], seed: int, path: Path
) -> Row:
    try:
        input, output = source.task.render(record.annotation)
    except ValueError as error:
        raise UserError(f"{path}: example {number + 1} is none of a {source.task.kind} task: {error}.") from error
    meta = {**source.task.facts(record.annotation), **record.meta}
    instruction = record.instruction
    if not instruction:
        if not wordings:
            raise UserError(f"{path}: example {number + 1} has no instruction, and {source.name} has no wordings.")
        wording = choose(source, split, number, seed)
        instruction, meta["wording"] = wordings[wording], wording
    if record.id:
        meta["id"] = record.id
    return Row(
        instruction=instruction,
        input=input,
        output=output,
        source=source.name,
        id=f"{source.name}/{split}/{number}",
        group=record.group,
        meta=json.dumps(meta, sort_keys=True, ensure_ascii=False),
    )


def with_ids(rows: Sequence[Row], split: str) -> list[Row]:
    """Returns rows that were read as they are, those without an id named by source, split and row number."""
    return [row if row.id else replace(row, id=f"{row.source}/{split}/{number}") for number, row in enumerate(rows)]


def _raw_sha256(paths: Sequence[Path]) -> str:
    """Returns the hash of one file, or of the sorted (relative name, hash) lines of several or of a folder's."""
    if len(paths) == 1 and paths[0].is_file():
        return _file_sha256(paths[0])
    named = []
    for path in paths:
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        named += [(str(file.relative_to(path.parent)), _file_sha256(file)) for file in files]
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in sorted(named)).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

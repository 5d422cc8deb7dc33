"""The corpora of one `prepare`: where each lies, who may read it, and what was read of it so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtune_jax.data_prep import gate
from medtune_jax.data_prep.collect import Place, describe, locate, read_split
from medtune_jax.data_prep.native import GadPolarity
from medtune_jax.errors import UserError
from medtune_jax.tasks.definition import read_source_file
from medtune_jax.tasks.registry import SOURCES, find_source, register, sources_named
from medtune_jax.tasks.rows import Row
from medtune_jax.tasks.source import Source


def own_sources(files: Sequence[Path]) -> dict[str, Path]:
    """Registers the sources that TOML files define; returns name -> the file's folder.

    Raises:
      UserError: a file cannot be read, is no definition, or two define the same name.
    """
    folders: dict[str, Path] = {}
    for file in files:
        source = read_source_file(file)
        if source.name in folders:
            raise UserError(f"--source_file={file}: {source.name} is already defined by another --source_file.")
        register(source)
        folders[source.name] = Path(file).parent
    return folders


@dataclass
class Corpora:
    """Reads splits of located sources.

    Attributes:
      places: source -> where it lies, for every source of the registry, in its order.
      signed: the credentialed sources that may be read.
      described: what the manifest says of each source that was read for the result.
      mode: what the result may have at most: it is not looser than the files that were read for it.
    """

    places: Mapping[str, Place]
    signed: frozenset[str]
    seed: int
    gad_polarity: GadPolarity
    described: dict[str, Any] = field(default_factory=dict)
    mode: int = gate.OPEN
    _read: dict[tuple[str, str], list[Row]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        raw_dir: Path | None,
        raw: Mapping[str, Path],
        own: Mapping[str, Path],
        signed: Sequence[str],
        seed: int,
        gad_polarity: GadPolarity,
    ) -> Corpora:
        """Locates every source: in its folder of `raw`, in raw_dir, or for a user's own beside its definition.

        Raises:
          UserError: a folder does not exist, or an unknown source is named.
        """
        folders = {source.name: Path(folder) for name, folder in raw.items() for source in sources_named(name)}
        for name, folder in folders.items():
            if not folder.is_dir():
                raise UserError(f"--raw={name}={folder}: no such folder.")
        places = {source.name: locate(source, raw_dir, folders) for source in SOURCES.values()}
        for name, folder in own.items():
            if places[name].folder is None:
                places[name] = locate(SOURCES[name], None, {name: folder})
        return cls(places, gate.signed_sources(signed), seed, gad_polarity)

    def refusal(self, source: Source) -> str:
        """Returns why the source may not be read, "" where it may."""
        return gate.refusal(source, self.signed)

    def read(self, name: str, split: str) -> list[Row]:
        """Returns the rows of a split for the result, and describes it. Test splits are kept for `peek`."""
        place = self.places[name]
        rows, facts = read_split(place, split, self.seed, self.gad_polarity)
        self.described.setdefault(name, describe(place.source, self.gad_polarity))["splits"][split] = facts
        assert place.folder is not None
        files = (place.layout.files[split], *place.layout.also)
        self.mode &= gate.tightest_mode(place.folder, [place.folder / file for file in files])
        if is_test(split):
            self._read[name, split] = rows
        return rows

    def peek(self, name: str, split: str) -> list[Row]:
        """Returns the rows of a split that is only compared with."""
        if (name, split) in self._read:
            return self._read[name, split]
        return read_split(self.places[name], split, self.seed, self.gad_polarity)[0]

    def describe_rows(self, rows: Sequence[Row], where: str) -> list[str]:
        """Describes the sources of rows that came as rows, from `where`; returns those that are not known."""
        unknown = []
        for name in dict.fromkeys(row.source for row in rows):
            source = find_source(name)
            if source is not None:
                self.described.setdefault(source.name, describe(source))
            else:
                self.described.setdefault(name, _unknown(name, where))
                unknown.append(name)
        return unknown


def _unknown(name: str, where: str) -> dict[str, Any]:
    return {
        "task": "unknown",
        "category": "other",
        "description": "Rows of a source that is not registered.",
        "licence": "unknown",
        "credentialed": False,
        "where": where,
        "wordings": [],
        "splits": {},
    }


def is_test(split: str) -> bool:
    """Says whether a native split is held out for reporting: test, test2, ..."""
    return split.startswith("test")

"""Instruction rows: the one form in which data is written, read, trained on and scored."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.tasks.definition import register_definitions
from medtune_jax.tasks.registry import find_source
from medtune_jax.tasks.source import SPLITS as SPLITS

HUB = "hf://"  # before owner/name: only what is asked for in so many words goes over the network
MANIFEST = "manifest.json"
_REQUIRED = ("instruction", "input", "output", "source")
_SUFFIXES = (".parquet", ".jsonl", ".csv")
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?")  # as the hub names them
# Hub data sets of one source, whose rows do not say it.
_HUB_SOURCES = {"bio-nlp-umass/bioinstruct": "bioinstruct"}


class MissingSplit(UserError):
    """The data is there, but holds no such split."""


@dataclass(frozen=True)
class Row:
    """One instruction row.

    Attributes:
      instruction: what is asked.
      input: the text that it is asked of.
      output: the gold answer, as the source's task renders it.
      source: name of the corpus, as in the registry.
      id: name of the row, unique within its file; may be "".
      group: what belongs together (document, patient); "" where unknown.
      meta: further facts as a JSON object, or "".
    """

    instruction: str
    input: str
    output: str
    source: str
    id: str = ""
    group: str = ""
    meta: str = ""


COLUMNS = tuple(field.name for field in fields(Row))


def write_rows(path: Path | str, rows: Sequence[Row]) -> None:
    """Writes a parquet file of string columns; the same rows give the same bytes under one pyarrow version.

    Uncompressed, so that no compressor's version enters the bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in COLUMNS])
    columns = [pa.array([getattr(row, name) for row in rows], pa.string()) for name in COLUMNS]
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), str(path), compression="NONE", row_group_size=1 << 16)


def read_rows(path: Path | str, split: str | None = None, sources: Sequence[str] = ()) -> list[Row]:
    """Returns the rows of a data set, in file order; a user's sources that its manifest defines are registered.

    Args:
      path: a folder of {split}.parquet, .jsonl or .csv, or of the hub's shards of them (train-00000-of-00003.parquet),
        also under `data/`; one such file (then `split` is not looked at); or `hf://owner/name`, a hub data set.
      split: train, validation, test, ...; may be None where a folder holds only one.
      sources: the sources to keep, by name or alias; all where empty.

    Raises:
      MissingSplit: the data has no such split.
      UserError: nothing there, columns missing, no rows, malformed file, a source not in the data.
    """
    if str(path).startswith(HUB):
        rows = _to_rows(_read_hub(str(path), split), str(path))
    else:
        places = _files_of_split(Path(path), split) if Path(path).is_dir() else [Path(path)]
        if not places[0].is_file():
            raise UserError(
                f"No data at {path}: give a folder with train.parquet, a .parquet/.jsonl/.csv file, or {HUB}owner/name "
                "for a hub data set."
            )
        _register_defined(places[0].parent)
        rows = [row for place in places for row in _to_rows(_READERS[_suffix(place)](place), place)]
        path = places[0] if len(places) == 1 else path
    if not rows:
        raise UserError(f"{path} has no rows.")
    present = {row.source for row in rows}
    for source in sources:
        if registered_name(source) not in map(registered_name, present):
            raise UserError(f"{path} has no rows of source '{source}'.{did_you_mean(source, present)}")
    return rows_of(rows, sources)


def rows_of(rows: list[Row], sources: Sequence[str]) -> list[Row]:
    """Returns the rows of `sources`, each a name or an alias; all where empty."""
    wanted = {registered_name(source) for source in sources}
    return [row for row in rows if registered_name(row.source) in wanted] if wanted else rows


def registered_name(name: str) -> str:
    """Returns the registry's name of a source, in whichever of its names; an unknown one as it is."""
    source = find_source(name)
    return name if source is None else source.name


def credentialed_in(rows: Iterable[Row]) -> list[str]:
    """Returns the sorted names of the credentialed sources of rows."""
    found = (find_source(name) for name in {row.source for row in rows})
    return sorted({source.name for source in found if source is not None and source.credentialed})


def gold_sha256(rows: Iterable[Row]) -> str:
    """Returns the hex SHA-256 of the ordered (input, output) pairs: which questions and gold answers, in which order.

    Each text goes in as its UTF-8 length (8 bytes, little endian) and its UTF-8 bytes.
    """
    return _sha256(text for row in rows for text in (row.input, row.output))


def rows_sha256(rows: Iterable[Row]) -> str:
    """Returns the hex SHA-256 of all columns of the ordered rows, framed as in `gold_sha256`."""
    return _sha256(text for row in rows for text in astuple(row))


def _sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def _suffix(place: Path) -> str:
    suffix = place.suffix.lower()
    if suffix not in _SUFFIXES:
        raise UserError(f"{place} is not a data file: its name must end in {', '.join(_SUFFIXES)}.")
    return suffix


def _files_of_split(folder: Path, split: str | None) -> list[Path]:
    found = _splits_in(folder) or _splits_in(folder / "data")
    if not found:
        raise UserError(
            f"{folder} holds no train/validation/test .parquet, .jsonl or .csv file; `medtune prepare` writes them."
        )
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split is None or split not in found:
        which = "Which split?" if split is None else f"There is no split '{split}'."
        raise MissingSplit(f"{which} {folder} holds: {', '.join(sorted(found))}.")
    return found[split]


def _splits_in(folder: Path) -> dict[str, list[Path]]:
    """Returns split -> its file, or all its shards in order; of several kinds of file parquet counts, then JSON lines.

    Raises:
      UserError: a shard is missing.
    """
    found: dict[str, list[Path]] = {}
    for suffix in reversed(_SUFFIXES):
        of_suffix: dict[str, list[Path]] = {}
        for place in sorted(folder.glob(f"*{suffix}")):
            shard = _SHARD.fullmatch(place.stem)
            of_suffix.setdefault(shard["split"] if shard else place.stem, []).append(place)
        found |= of_suffix
    for split, places in found.items():
        shards = [shard for place in places if (shard := _SHARD.fullmatch(place.stem))]
        numbers = [int(shard["number"]) for shard in shards]
        if shards and (numbers != list(range(int(shards[0]["count"]))) or len(shards) < len(places)):
            raise UserError(
                f"{folder}: split '{split}' must be {shards[0]['count']} shards, each once; found "
                f"{', '.join(place.name for place in places)}."
            )
    return found


def _register_defined(folder: Path) -> None:
    """Registers the user's sources that the folder's manifest defines; a file without such is none of ours."""
    place = folder / MANIFEST
    if not place.is_file():
        return
    try:
        manifest = json.loads(read_text(place))
    except json.JSONDecodeError as error:
        raise UserError(f"{place}:{error.lineno}: not JSON ({error.msg}); run `medtune prepare` again.") from error
    sources = manifest.get("sources") if isinstance(manifest, dict) else None
    if isinstance(sources, dict):
        defined = ((name, facts.get("definition")) for name, facts in sources.items() if isinstance(facts, dict))
        register_definitions({name: definition for name, definition in defined if definition})


def _read_parquet(place: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(str(place)) as file:
            _check_columns(file.schema_arrow.names, place)
            names = [name for name in COLUMNS if name in file.schema_arrow.names]
            for batch in file.iter_batches(4096, columns=names):  # never the whole table as Python objects
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{place} cannot be read as parquet: {error}") from error


def _read_jsonl(place: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(read_text(place).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}:{number}: not JSON ({error.msg}); one object per line is expected.") from error
        if not isinstance(record, dict):
            raise UserError(f"{place}:{number}: a JSON object is expected, found {type(record).__name__}.")
        _check_columns(record, f"{place}:{number}")
        yield record


def _read_csv(place: Path) -> Iterator[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(read_text(place), newline=""), strict=True)
    _check_columns(reader.fieldnames or (), place)
    try:
        yield from reader
    except csv.Error as error:
        raise UserError(f"{place}:{reader.line_num}: not CSV ({error}).") from error


_READERS = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".csv": _read_csv}


def _read_hub(place: str, split: str | None) -> Iterator[Mapping[str, Any]]:
    name = place.removeprefix(HUB)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise UserError(f"{place} does not name a hub data set: write {HUB}owner/name.")
    if split is None:
        raise UserError(f"Which split of the hub data set {name}? Give one, such as train or validation.")
    import datasets

    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:  # the hub's client raises many kinds; every one means that the data is not to be had
        if "Unknown split" in str(error):
            raise MissingSplit(f"There is no split '{split}' in the hub data set {name}: {error}") from error
        raise UserError(f"The hub data set {name}, split '{split}', cannot be read: {error}") from error
    source = _HUB_SOURCES.get(name.casefold())
    if source is not None and "source" not in table.column_names:
        _check_columns([*table.column_names, "source"], place)
        return ({**record, "source": source} for record in table)
    _check_columns(table.column_names, place)
    return iter(table)


def read_text(place: Path) -> str:
    """Returns the text of a UTF-8 file, line ends as they are, a byte order mark dropped.

    Raises:
      UserError: not UTF-8 (names the line), or not readable.
    """
    try:
        raw = place.read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{place}:{line}: not UTF-8 (byte {raw[error.start]:#04x}); convert the file to UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error.strerror}.") from error


def _check_columns(found: Iterable[str], where: Path | str) -> None:
    missing = [name for name in _REQUIRED if name not in (found := list(found))]
    if missing == ["source"]:
        raise UserError(
            f"{where} lacks the column source, the corpus of each row by its name; add it, or describe the file in a "
            "definition of your own corpus and run `medtune prepare --source_file` on it."
        )
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; it has {', '.join(map(str, found)) or 'no columns'}.")


def _to_rows(records: Iterable[Mapping[str, Any]], place: Path | str) -> list[Row]:
    return [
        Row(**{name: _text(record.get(name), name, place, number) for name in COLUMNS})
        for number, record in enumerate(records, 1)
    ]


def _text(value: Any, name: str, place: Path | str, number: int) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if name == "meta" and isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    if name in ("id", "group") and isinstance(value, int):
        return str(value)
    raise UserError(f"{place}, row {number}: column '{name}' must be a string, found {type(value).__name__}.")

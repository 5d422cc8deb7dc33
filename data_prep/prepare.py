"""`medtune prepare`: native corpus files to instruction rows, with a manifest and a dataset card."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtune_jax.data_prep import card
from medtune_jax.data_prep.native import Ask, NativeFile
from medtune_jax.data_prep.readers import READERS
from medtune_jax.data_prep.wordings import choose, wordings_of
from medtune_jax.errors import UserError
from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.registry import SOURCES, sources_named
from medtune_jax.tasks.rows import SPLITS, Row, gold_sha256, rows_sha256, write_rows
from medtune_jax.tasks.source import Layout, Source

MANIFEST = "manifest.json"


def prepare(
    out: Path,
    *,
    raw_dir: Path | None = None,
    raw: Mapping[str, Path] | None = None,
    sources: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Writes {split}.parquet, manifest.json and README.md to the folder `out`, all or nothing.

    Rows stand in registry order of their sources, then in file order. The same files and seed give the same bytes.

    Args:
      out: a folder that does not exist, is empty, or was written by an earlier prepare (it is then replaced).
      raw_dir: folder with one folder per source, named as the source or one of its aliases.
      raw: source -> folder, for sources that lie elsewhere.
      sources: what to prepare; where empty, all that is found.
      seed: of the choice of instruction wordings.

    Returns:
      JSON-ready: out; rows per split; the manifest's sources; missing: [{source, files, where}] of what was not found.

    Raises:
      UserError: a source asked for is missing, none is found, a file is malformed, `out` holds something else.
    """
    folders = {source.name: Path(folder) for name, folder in (raw or {}).items() for source in sources_named(name)}
    for name, place in folders.items():
        if not place.is_dir():
            raise UserError(f"--raw={name}={place}: no such folder.")
    asked = {source.name for name in sources for source in sources_named(name)}
    _check_replaceable(out)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    described: dict[str, Any] = {}
    missing = []
    for source in SOURCES.values():
        if asked and source.name not in asked:
            continue
        folder = folders.get(source.name) or _find_folder(raw_dir, source)
        layout = _find_layout(folder, source)
        absent = [file for file in _files(layout) if folder is None or not (folder / file).exists()]
        if absent:
            missing.append({"source": source.name, "files": absent, "where": source.where})
        if folder is None or len(absent) == len(_files(layout)) or any(file in absent for file in layout.also):
            if source.name in asked or source.name in folders:
                looked = folder or (raw_dir / source.name if raw_dir else "--raw_dir or --raw")
                raise UserError(
                    f"{source.name} is missing: no {', '.join(absent)} in {looked}. How to get it: {source.where}."
                )
            continue
        described[source.name] = _describe(source)
        for split, file in layout.files.items():
            if file not in absent:
                added, facts = _prepare_split(source, layout, split, folder, seed)
                rows[split] += added
                described[source.name]["splits"][split] = facts
    if not described:
        raise UserError(
            f"No source found in {raw_dir}: it must hold folders named as sources: {', '.join(list(SOURCES)[:3])}, ..."
        )
    rows = {split: found for split, found in rows.items() if found}
    manifest = {
        "format": 1,
        "wording_seed": seed,
        "splits": {split: {"rows": len(found), "rows_sha256": rows_sha256(found)} for split, found in rows.items()},
        "sources": described,
    }
    _write(out, rows, manifest)
    counts = {split: len(found) for split, found in rows.items()}
    return {"out": str(out), "rows": counts, "sources": described, "missing": missing}


def _find_folder(raw_dir: Path | None, source: Source) -> Path | None:
    if raw_dir is None:
        return None
    if not raw_dir.is_dir():
        raise UserError(f"--raw_dir={raw_dir}: no such folder.")
    names = (source.folder, source.name, *source.aliases)
    return next((raw_dir / name for name in names if name and (raw_dir / name).is_dir()), None)


def _find_layout(folder: Path | None, source: Source) -> Layout:
    """Returns the first layout of which a split's file is in the folder; the source's first one where none is."""
    for layout in source.layouts:
        if folder is not None and any((folder / file).exists() for file in layout.files.values()):
            return layout
    return source.layouts[0]


def _files(layout: Layout) -> list[str]:
    return list(dict.fromkeys([*layout.files.values(), *layout.also]))


def _describe(source: Source) -> dict[str, Any]:
    return {
        "task": source.task.kind,
        "description": source.description,
        "licence": source.licence,
        "credentialed": source.credentialed,
        "where": source.where,
        "wordings": list(wordings_of(source)),
        "splits": {},
    }


def _prepare_split(
    source: Source, layout: Layout, split: str, folder: Path, seed: int
) -> tuple[list[Row], dict[str, Any]]:
    """Returns the rows of one native split and what the manifest says of them."""
    path = folder / layout.files[split]
    native = READERS[layout.format](path, source.task, Ask(split, layout))
    rows = []
    for number, record in enumerate(native.records):
        input, output = source.task.render(record.annotation)
        meta = {**source.task.facts(record.annotation), **record.meta}
        instruction = record.instruction
        if not instruction:
            wording = choose(source, split, number, seed)
            instruction, meta["wording"] = wordings_of(source)[wording], wording
        if record.id:
            meta["id"] = record.id
        rows.append(
            Row(
                instruction=instruction,
                input=input,
                output=output,
                source=source.name,
                id=f"{source.name}/{split}/{number}",
                group=record.group,
                meta=json.dumps(meta, sort_keys=True, ensure_ascii=False),
            )
        )
    gold = gold_sha256(rows)
    return rows, {
        "rows": len(rows),
        **_gold_counts(source, native),
        "file": layout.files[split],
        "raw_sha256": _raw_sha256([path, *(folder / name for name in layout.also)]),
        "rows_sha256": rows_sha256(rows),
        "gold_sha256": gold,
        "official_split": source.splits.get(gold),
        "dropped": dict(sorted(native.dropped.items())),
    }


def _raw_sha256(paths: Sequence[Path]) -> str:
    """Returns the hash of one file, or of the sorted (relative name, hash) lines of several or of a folder's."""
    if len(paths) == 1 and paths[0].is_file():
        return hashlib.sha256(paths[0].read_bytes()).hexdigest()
    named = []
    for path in paths:
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        named += [(str(file.relative_to(path.parent)), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in sorted(named)).encode()).hexdigest()


def _gold_counts(source: Source, native: NativeFile) -> dict[str, Any]:
    if isinstance(source.task, NerTask):
        return {"mentions": sum(tag[0] == "B" for _, tags in native.annotations for tag in tags)}
    counts = Counter(annotation[-1] for annotation in native.annotations)
    return {"labels": {label: counts[label] for label in source.task.labels}}


def _check_replaceable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UserError(f"--out={out} holds other files and no {MANIFEST}; give a new folder.")


def _write(out: Path, rows: Mapping[str, list[Row]], manifest: dict[str, Any]) -> None:
    """Writes beside `out` first and renames at the end, so that `out` is never half-written."""
    out = Path(os.path.abspath(out))
    spool = out.with_name(f".{out.name}.partial-{os.getpid()}")
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    try:
        spool.mkdir(parents=True)
        for split, found in rows.items():
            write_rows(spool / f"{split}.parquet", found)
        text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (spool / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
        (spool / "README.md").write_text(card.render(manifest), encoding="utf-8", newline="\n")
        if out.exists():
            out.rename(old)
        spool.rename(out)
    except OSError as error:
        if old.exists() and not out.exists():
            old.rename(out)
        raise UserError(f"--out={out} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(spool, ignore_errors=True)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)

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
from medtune_jax.data_prep.conll import read_conll
from medtune_jax.data_prep.labelled import read_nli_jsonl, read_relation_tsv
from medtune_jax.data_prep.native import NativeFile, Reader
from medtune_jax.data_prep.wordings import WORDINGS, choose
from medtune_jax.errors import UserError
from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.registry import SOURCES, Source, get_source
from medtune_jax.tasks.rows import SPLITS, Row, gold_sha256, rows_sha256, write_rows

READERS: dict[str, Reader] = {
    "conll": read_conll,
    "relation_tsv": read_relation_tsv,
    "nli_jsonl": read_nli_jsonl,
}
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
    folders = {get_source(name).name: Path(folder) for name, folder in (raw or {}).items()}
    for name, place in folders.items():
        if not place.is_dir():
            raise UserError(f"--raw={name}={place}: no such folder.")
    asked = {get_source(name).name for name in sources}
    _check_replaceable(out)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    described: dict[str, Any] = {}
    missing = []
    for source in SOURCES.values():
        if asked and source.name not in asked:
            continue
        folder = folders.get(source.name) or _find_folder(raw_dir, source)
        absent = [file for file in source.files.values() if folder is None or not (folder / file).is_file()]
        if absent:
            missing.append({"source": source.name, "files": absent, "where": source.where})
        if folder is None or len(absent) == len(source.files):
            if source.name in asked or source.name in folders:
                looked = folder or (raw_dir / source.name if raw_dir else "--raw_dir or --raw")
                raise UserError(
                    f"{source.name} is missing: no {', '.join(absent)} in {looked}. How to get it: {source.where}."
                )
            continue
        described[source.name] = _describe(source)
        for split, file in source.files.items():
            if file not in absent:
                added, facts = _prepare_file(source, split, folder / file, seed)
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
    return next((raw_dir / name for name in (source.name, *source.aliases) if (raw_dir / name).is_dir()), None)


def _describe(source: Source) -> dict[str, Any]:
    return {
        "task": source.task.kind,
        "description": source.description,
        "licence": source.licence,
        "credentialed": source.credentialed,
        "where": source.where,
        "wordings": list(WORDINGS[source.name]),
        "splits": {},
    }


def _prepare_file(source: Source, split: str, path: Path, seed: int) -> tuple[list[Row], dict[str, Any]]:
    """Returns the rows of one native file and what the manifest says of them."""
    native = READERS[source.format](path, source.task)
    rows = []
    for number, annotation in enumerate(native.annotations):
        input, output = source.task.render(annotation)
        wording = choose(source.name, split, number, seed)
        rows.append(
            Row(
                instruction=WORDINGS[source.name][wording],
                input=input,
                output=output,
                source=source.name,
                id=f"{source.name}/{split}/{number}",
                meta=json.dumps({"wording": wording}),
            )
        )
    gold = gold_sha256(rows)
    return rows, {
        "rows": len(rows),
        **_gold_counts(source, native),
        "file": path.name,
        "raw_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "rows_sha256": rows_sha256(rows),
        "gold_sha256": gold,
        "official_split": source.splits.get(gold),
        "dropped": dict(sorted(native.dropped.items())),
    }


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

"""Encoded rows on disk, memory-mapped: encoded once in all processes' time, and never held in memory whole.

An entry is a folder named by the hash of all that decides its content. It is written under another name and renamed
when complete; one that is damaged or of another version is not read but made again.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from medtune_jax.data import encode, workers
from medtune_jax.data.encode import Overlong, Policy, Report
from medtune_jax.data.encoded import EncodedRows
from medtune_jax.data.prompts import Template
from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.tasks.rows import Row, rows_sha256

_FROM = 20_000  # fewer rows are encoded in seconds, and stay in memory
_KEPT = 8  # entries, the last ones used
_IN_USE = 30 * 86_400.0  # seconds for which an entry may be in use
_ARRAYS = {"tokens": "<i4", "weights": "<f4", "starts": "<i8", "prompt_lengths": "<i4", "rows": "<i8"}
_ENTRY = "entry.json"
_log = logging.getLogger(__name__)


def default_folder() -> Path:
    """Returns $XDG_CACHE_HOME/medtune_jax/rows, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medtune_jax" / "rows"


def encode_cached(
    tokenizer: Tokenizer,
    template: Template,
    rows: Sequence[Row],
    *,
    folder: Path,
    max_length: int | None = None,
    overlong: Overlong = "error",
    decision_weight: float = 1.0,
    workers: int | None = None,
) -> tuple[EncodedRows, Report]:
    """Does what `encode.encode_rows` does, for many rows in several processes and into `folder`, or from there.

    Where `folder` cannot be written, rows stay in memory, with a warning. workers: None = one for each core.

    Raises:
      UserError: as `encode.encode_rows`.
    """
    policy = Policy(max_length, overlong, decision_weight)
    if len(rows) < _FROM:
        return encode.encode_rows(tokenizer, template, rows, **dataclasses.asdict(policy))
    encode.check(rows, policy)
    entry = folder / _key(tokenizer, template, rows, policy)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(folder / f".lock-{entry.name}"):  # the other processes of this machine wait, and read
            found = _read(entry)
            if found is None:
                _make(entry, tokenizer, template, rows, policy, workers)
                found = _read(entry)
    except OSError as error:
        _log.warning("Encoded rows are not kept: %s cannot be written (%s).", folder, error.strerror or error)
        found = None
    return found or encode.encode_rows(tokenizer, template, rows, **dataclasses.asdict(policy))


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Holds the lock `place` while it is entered; the kernel releases it where the process is killed."""
    with place.open("w") as file:
        with suppress(OSError):  # a file system without locks: two may write, the second in vain
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _key(tokenizer: Tokenizer, template: Template, rows: Sequence[Row], policy: Policy) -> str:
    told = {
        "code": _code_sha256(),
        "tokenizer": tokenizer.sha256,
        "template": template.sha256,
        "policy": dataclasses.asdict(policy),
        "definitions": workers.user_definitions(rows),
        "rows": rows_sha256(rows),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _code_sha256() -> str:
    """Returns a hash of the code that encodes: another version never reads what this one wrote."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted([*(package / "data").glob("*.py"), *(package / "tasks").rglob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _make(
    entry: Path,
    tokenizer: Tokenizer,
    template: Template,
    rows: Sequence[Row],
    policy: Policy,
    count: int | None,
) -> None:
    spool = Path(tempfile.mkdtemp(prefix=".partial-", dir=entry.parent))  # its owner's only: tokens are text
    count = workers.count_workers(len(rows)) if count is None else count
    tallies = []
    written = {"tokens": 0, "rows": 0}
    checksums = dict.fromkeys(_ARRAYS, 0)
    files = {name: (spool / name).open("wb") for name in _ARRAYS}

    def append(name: str, array: np.ndarray) -> None:
        content = np.ascontiguousarray(array, _ARRAYS[name])
        files[name].write(content.data)
        checksums[name] = zlib.crc32(content.data, checksums[name])

    try:
        append("starts", np.zeros(1, np.int64))
        with tqdm(total=len(rows), desc="encoding", unit=" rows", disable=None) as bar:
            for part, tally in workers.encode_in_order(tokenizer, template, rows, policy, count):
                append("starts", part.starts[1:] + written["tokens"])
                for name in ("tokens", "weights", "prompt_lengths", "rows"):
                    append(name, getattr(part, name))
                written = {"tokens": written["tokens"] + len(part.tokens), "rows": written["rows"] + len(part)}
                tallies.append(tally)
                bar.update(min(encode.CHUNK, len(rows) - bar.n))
        report = encode.summarize(tallies, rows, policy)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        about = {"report": dataclasses.asdict(report), "checksums": checksums}
        (spool / _ENTRY).write_text(json.dumps(about), encoding="utf-8")
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one
        spool.rename(entry)
    finally:
        for file in files.values():
            file.close()
        shutil.rmtree(spool, ignore_errors=True)
    _prune(entry.parent)


def _read(entry: Path) -> tuple[EncodedRows, Report] | None:
    """Returns an entry, its arrays memory-mapped; None where there is none, or not a whole one."""
    try:
        about: dict[str, Any] = json.loads((entry / _ENTRY).read_text(encoding="utf-8"))
        arrays = {name: np.memmap(entry / name, dtype, mode="r") for name, dtype in _ARRAYS.items()}
        if {name: zlib.crc32(array.data) for name, array in arrays.items()} != about["checksums"]:
            raise ValueError("a checksum is wrong")
        report = about["report"]
        report["unknown_sources"] = tuple((source, count) for source, count in report["unknown_sources"])
        os.utime(entry)  # used now
        return EncodedRows(**arrays), Report(**report)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("Encoded rows in %s are damaged (%s): made again.", entry, error)
        return None


def _prune(folder: Path) -> None:
    """Removes entries that nothing has used for long, but for the last ones, and what killed processes left."""
    entries = sorted(folder.glob("[!.]*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in [*entries[_KEPT:], *folder.glob(".partial-*")]:
        if time.time() - path.stat().st_mtime > _IN_USE:  # else a run may have it mapped
            shutil.rmtree(path, ignore_errors=True)

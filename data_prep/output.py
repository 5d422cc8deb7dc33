"""Writes the folder of prepared rows: all or nothing, and for its owner only where the text asks for it."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtune_jax.data_prep import card
from medtune_jax.errors import UserError
from medtune_jax.tasks.rows import Row, write_rows

MANIFEST = "manifest.json"


def check_replaceable(out: Path) -> None:
    """Raises UserError where `out` is neither new, nor empty, nor what an earlier prepare wrote."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UserError(f"--out={out} holds other files and no {MANIFEST}; give a new folder.")


def write(out: Path, rows: Mapping[str, list[Row]], manifest: Mapping[str, Any], *, owner_only: bool) -> None:
    """Writes beside `out` first and renames at the end, so that `out` is never half-written.

    A stop by signal (raised as KeyboardInterrupt) or a full disk leaves an earlier `out` as it was and nothing else.

    Args:
      owner_only: folder and files are the owner's alone (0700, 0600), from before their first byte. A folder that is
        replaced hands on its tighter mode in any case.

    Raises:
      UserError: it cannot be written.
    """
    out = Path(os.path.abspath(out))
    spool = out.with_name(f".{out.name}.partial-{os.getpid()}")
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    try:
        spool.mkdir(parents=True)
        mode = stat.S_IMODE(spool.stat().st_mode)
        if out.exists():
            mode &= stat.S_IMODE(out.stat().st_mode)
        if owner_only:
            mode &= 0o700
        spool.chmod(mode)
        for split, found in rows.items():
            write_rows(_created(spool / f"{split}.parquet", mode), found)
        text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        _created(spool / MANIFEST, mode).write_text(text, encoding="utf-8", newline="\n")
        _created(spool / "README.md", mode).write_text(card.render(manifest), encoding="utf-8", newline="\n")
        if out.exists():
            out.rename(old)
        spool.rename(out)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}.") from error
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(spool, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _created(path: Path, folder_mode: int) -> Path:
    """Returns `path`, now an empty file that no one can read who cannot read the folder."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, folder_mode & 0o666))
    return path

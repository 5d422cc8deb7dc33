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
CARD = "README.md"
_SHOWN = 5  # names of files in an error


def check_replaceable(out: Path) -> None:
    """Raises UserError where `out` is neither new, nor empty, nor what an earlier prepare wrote, or can never be made.

    What is replaced is removed whole: so every file must be one that the manifest of an earlier prepare accounts for.
    """
    try:
        if out.exists() and not out.is_dir():
            raise UserError(f"--out={out} is a file; give a folder.")
        strangers = _strangers(out) if out.exists() else []
        above = next(folder for folder in Path(os.path.realpath(out)).parents if folder.exists())
        if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
            problem = "is not writable for you" if above.is_dir() else "is a file"
            raise UserError(f"--out={out} cannot be made: {above} {problem}; give a folder elsewhere.")
    except OSError as error:
        raise UserError(f"--out={out} cannot be made: {error.strerror}; give a folder elsewhere.") from error
    if strangers:
        more = f" and {len(strangers) - _SHOWN} more" if len(strangers) > _SHOWN else ""
        raise UserError(
            f"--out={out} holds what `medtune prepare` did not write: {', '.join(strangers[:_SHOWN])}{more}; "
            "give a new folder, or move this out of it."
        )


def _strangers(out: Path) -> list[str]:
    """Returns the names of what no earlier prepare wrote, sorted; all where the manifest is none of ours."""
    known = set()
    if (out / MANIFEST).is_file():
        try:
            manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        except (ValueError, RecursionError):  # not UTF-8, not JSON, nested too deep
            manifest = None
        if isinstance(manifest, dict) and {"format", "wording_seed"} <= manifest.keys():
            splits = manifest.get("splits")
            known = {MANIFEST, CARD, *(f"{split}.parquet" for split in (splits if isinstance(splits, dict) else ()))}
    return sorted(entry.name for entry in out.iterdir() if entry.name not in known or not entry.is_file())


def write(out: Path, rows: Mapping[str, list[Row]], manifest: Mapping[str, Any], *, at_most: int) -> None:
    """Writes beside `out` first and renames at the end, so that `out` is never half-written.

    A stop by signal (raised as KeyboardInterrupt) or a full disk leaves an earlier `out` as it was and nothing else.

    Args:
      at_most: the mode that the folder may have at most, from before its first byte, and its files with it: 0o700 for
        its owner's alone. A folder that is replaced hands on its tighter mode in any case.

    A link is followed: the folder that it points to is replaced, and the link stays.

    Raises:
      UserError: it cannot be written, or `out` holds by now what no prepare wrote.
    """
    named, out = out, Path(os.path.realpath(out))
    spool = out.with_name(f".{out.name}.partial-{os.getpid()}")
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    try:
        spool.mkdir(parents=True)
        mode = stat.S_IMODE(spool.stat().st_mode)
        if out.exists():
            mode &= stat.S_IMODE(out.stat().st_mode)
        mode &= at_most
        spool.chmod(mode)
        for split, found in rows.items():
            write_rows(_created(spool / f"{split}.parquet", mode), found)
        text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        _created(spool / MANIFEST, mode).write_text(text, encoding="utf-8", newline="\n")
        _created(spool / CARD, mode).write_text(card.render(manifest), encoding="utf-8", newline="\n")
        check_replaceable(named)  # again: it may have been filled since
        if out.exists():
            out.rename(old)
        spool.rename(out)
    except OSError as error:
        raise UserError(
            f"--out={named} cannot be written: {error.strerror}. Give a folder where you may write and that has room."
        ) from error
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(spool, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _created(path: Path, folder_mode: int) -> Path:
    """Returns `path`, now an empty file that no one can read who cannot read the folder."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, folder_mode & 0o666))
    return path

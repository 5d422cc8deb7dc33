"""A folder that is written whole or not at all, and what lies beside the weights in every folder that is exported."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medtune_jax.convert.hf_import import MEDTUNE_FILE
from medtune_jax.convert.origin import ORIGIN_FILE, Origin, model_card, origin_json
from medtune_jax.data.prompts import get_template
from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.errors import UserError


def check_target(folder: Path) -> None:
    """Raises UserError where an export to `folder` would overwrite something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; nothing is overwritten. Choose another --out.")


@contextmanager
def new_folder(folder: Path, *, private: bool) -> Iterator[Path]:
    """Yields an empty folder beside `folder`, which takes its name when the block ends well and vanishes otherwise.

    private: what is written is its owner's only.

    Raises:
      UserError: `folder` holds something, or the disk is full or not writable.
    """
    check_target(folder)
    spool = folder.absolute().parent / f".{folder.name}.partial-{os.getpid()}"
    before = os.umask(0o077) if private else None
    try:
        spool.mkdir(parents=True)
        yield spool
        spool.rename(folder)
    except OSError as error:
        raise UserError(f"Cannot write {folder}: {error.strerror or error}. Nothing was left there.") from error
    finally:
        if before is not None:
            os.umask(before)
        shutil.rmtree(spool, ignore_errors=True)


def write_companions(
    folder: Path,
    *,
    tokenizer: Tokenizer | None,
    template: str | None,
    origin: Origin | None,
    about: Mapping[str, str],
    library: str = "transformers",
) -> None:
    """Writes medtune.json (the template), the tokenizer's files, and origin.json with a model card, as far as given.

    about: lines of the card; library: the hub's name of what loads the folder.
    """
    sha256 = None if template is None else get_template(template).sha256
    write_json(folder / MEDTUNE_FILE, {"template": template, "template_sha256": sha256})
    if tokenizer is not None:
        tokenizer.copy_to(folder)
    if origin is not None:
        write_json(folder / ORIGIN_FILE, origin_json(origin))
        about = {**about, "prompt template": template or "not known"}
        (folder / "README.md").write_text(model_card(origin, about, library), encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

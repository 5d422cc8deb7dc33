"""Reads what a mixture asks for: rows of each ingredient, or why there are none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medtune_jax.data_prep import gate
from medtune_jax.data_prep.collect import lack, lack_text, with_ids
from medtune_jax.data_prep.corpora import Corpora
from medtune_jax.data_prep.mixtures import mixing
from medtune_jax.data_prep.mixtures.mixing import Batch
from medtune_jax.data_prep.mixtures.mixture import Ingredient, Mixture
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import SOURCES, find_source
from medtune_jax.tasks.rows import HUB, credentialed_in, read_rows, rows_sha256

UNSIGNED = "credentialed, not signed for"


def read_ingredients(mixture: Mixture, corpora: Corpora, notes: dict[str, Any]) -> list[Batch]:
    """Returns a batch for each ingredient, its categories, duplicates and cap applied; an empty one where it is
    missing.

    Args:
      notes: its `missing` and `skipped` are added to: what was not found, and what may not be read.

    Raises:
      UserError: a file is malformed, a source has no such split in any form, or nothing at all was found.
    """
    seen: dict[str, set[bytes]] = {}
    batches = []
    for ingredient in mixture.ingredients:
        reader = _read_path if ingredient.path else _read_source
        batch = reader(ingredient, mixture, corpora, notes)
        mixing.keep_categories(batch)
        if mixture.dedup:
            mixing.drop_duplicates(batch, seen.setdefault(ingredient.into, set()))
        mixing.cap(batch, corpora.seed)
        batches.append(batch)
    if not any(batch.rows for batch in batches):
        reasons = [skipped["reason"] for skipped in notes["skipped"]] + [lack_text(lack) for lack in notes["missing"]]
        raise UserError(f"No rows of {mixture.name}. {' '.join(reasons[:3])}".strip())
    return batches


def _read_source(ingredient: Ingredient, mixture: Mixture, corpora: Corpora, notes: dict[str, Any]) -> Batch:
    source, split = SOURCES[ingredient.source], ingredient.split
    place = corpora.places[source.name]
    known = list(dict.fromkeys(split for layout in source.layouts for split in layout.files))
    if split not in known:
        raise UserError(f"{mixture.name}: {source.name} has no split '{split}'; it has {', '.join(known)}.")
    if split not in place.splits:
        missing = lack(place, (split,))
        _add(notes["missing"], missing)
        return Batch(ingredient, [], missing=f"no {', '.join(missing['files'])}")
    reason = corpora.refusal(source)
    if reason:
        _add(notes["skipped"], {"source": source.name, "reason": reason})
        return Batch(ingredient, [], missing=UNSIGNED)
    return Batch(ingredient, corpora.read(source.name, split))


def _read_path(ingredient: Ingredient, mixture: Mixture, corpora: Corpora, notes: dict[str, Any]) -> Batch:
    path = ingredient.path if ingredient.path.startswith(HUB) else mixture.folder / ingredient.path
    sources = (ingredient.source,) if ingredient.source else ()
    batch = Batch(ingredient, with_ids(read_rows(path, ingredient.split, sources), ingredient.split))
    refused = {name: gate.refusal(SOURCES[name], corpora.signed) for name in credentialed_in(batch.rows)}
    for name, reason in refused.items():
        if reason:
            _add(notes["skipped"], {"source": name, "reason": reason})
    named = [find_source(row.source) for row in batch.rows]
    batch.keep([at for at, source in enumerate(named) if source is None or not refused.get(source.name)], UNSIGNED)
    where = Path(ingredient.path).name if isinstance(path, Path) else ingredient.path
    for name in corpora.describe_rows(batch.rows, where):
        notes["warnings"].append(
            f"{ingredient.path}: source '{name}' is not known: taken as not credentialed. If you have its definition, "
            "give it as --source_file."
        )
    if isinstance(path, Path):
        corpora.mode &= _mode_of_rows(path, ingredient.split)
    return batch


def _mode_of_rows(path: Path, split: str) -> int:
    """Returns the mode that what is made of a file of rows, or of a folder's rows of a split, may have at most."""
    if not path.is_dir():
        return gate.tightest_mode(path, [])
    return gate.tightest_mode(path, [file for folder in (path, path / "data") for file in folder.glob(f"{split}[.-]*")])


def _add(entries: list[dict[str, Any]], entry: dict[str, Any]) -> None:
    """Adds what is said of a source, or joins its files to what was said already."""
    for present in entries:
        if present["source"] == entry["source"]:
            for name in ("files", "paths"):
                present.update({name: list(dict.fromkeys([*present[name], *entry[name]]))} if name in entry else {})
            return
    entries.append(entry)


def mixture_facts(mixture: Mixture, batches: Sequence[Batch], seed: int) -> dict[str, Any]:
    """Returns what the manifest says of a mixture: its settings, and of each ingredient what was asked, found, kept and
    dropped, and how its rows differ from what is expected."""
    kept = sum(len(batch.rows) for batch in batches if batch.ingredient.into == "train")
    return {
        "name": mixture.name,
        "description": mixture.description,
        "seed": seed,
        "shuffle": list(mixture.shuffle),
        "dedup": mixture.dedup,
        "balance": mixture.balance,
        "train_rows": mixture.train_rows,
        "train_rows_kept": kept,
        "train_rows_differ": mixture.train_rows is not None and mixture.train_rows != kept,
        "temperature": mixture.temperature,
        "ingredients": [_ingredient_facts(batch) for batch in batches],
    }


def _ingredient_facts(batch: Batch) -> dict[str, Any]:
    asked = batch.ingredient
    return {
        "into": asked.into,
        "source": asked.source,
        "path": asked.path,
        "split": asked.split,
        "asked": {
            "rows": asked.rows,
            "cap": asked.cap,
            "fraction": asked.fraction,
            "weight": asked.weight,
            "categories": list(asked.categories),
        },
        "missing": batch.missing,
        "found": batch.found,
        "kept": len(batch.rows),
        "dropped": dict(sorted(batch.dropped.items())),
        "differs": asked.rows is not None and asked.rows != len(batch.rows),
        "rows_sha256": rows_sha256(batch.rows),
    }

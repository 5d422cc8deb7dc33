"""`medtune prepare`: native corpus files to instruction rows, with a manifest and a dataset card."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtune_jax.data_prep import output
from medtune_jax.data_prep.card import licences
from medtune_jax.data_prep.collect import lack, lack_text, unregistered
from medtune_jax.data_prep.corpora import Corpora, own_sources
from medtune_jax.data_prep.counts import expected_text
from medtune_jax.data_prep.gate import OPEN, OWNER_ONLY
from medtune_jax.data_prep.mixtures import mixing
from medtune_jax.data_prep.mixtures.ingredients import mixture_facts, read_ingredients
from medtune_jax.data_prep.mixtures.mixing import Batch
from medtune_jax.data_prep.mixtures.mixture import CONTAMINATION, Ingredient, Mixture, load_mixture
from medtune_jax.data_prep.mixtures.screening import screen
from medtune_jax.data_prep.native import GadPolarity
from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.tasks.registry import SOURCES, sources_named
from medtune_jax.tasks.rows import SPLITS, Row, credentialed_in, gold_sha256, rows_sha256
from medtune_jax.tasks.sources import samples

FORMAT = 2  # of manifest.json
_SAMPLES = frozenset(source.name for source in samples.SOURCES)
logger = logging.getLogger(__name__)


def prepare(
    out: Path,
    *,
    raw_dir: Path | None = None,
    raw: Mapping[str, Path] | None = None,
    sources: Sequence[str] = (),
    source_files: Sequence[Path] = (),
    mixture: str = "",
    seed: int = 0,
    gad_polarity: GadPolarity = "association",
    signed: Sequence[str] = (),
    contamination: str = "",
) -> dict[str, Any]:
    """Writes {split}.parquet, manifest.json and README.md to the folder `out`, all or nothing.

    Without a mixture rows stand in registry order of their sources, then in file order, each in the split that the
    corpus has it in. The same files and seed give the same bytes.

    Args:
      out: a folder that does not exist, is empty, or was written by an earlier prepare (it is then replaced).
      raw_dir: folder with one folder per source, named as the source or one of its aliases.
      raw: source -> folder, for sources that lie elsewhere.
      sources: what to prepare; where empty, all that is found.
      source_files: TOML files of the user's own sources, prepared too; their corpora lie in raw_dir or beside them.
      mixture: name of a built-in mixture or path of a TOML file; excludes `sources`.
      seed: of the choice of instruction wordings, and of a mixture's drawing and order.
      gad_polarity: which of GAD's labels is Positive.
      signed: the credentialed sources whose agreement the user has signed.
      contamination: report, drop or off; where empty what the mixture says, else report.

    Returns:
      JSON-ready: out; rows per split; the manifest's sources, mixture, contamination and credentialed; missing: what
      was not found and how to get it; skipped: what was found and not used, with the reason; warnings.

    Raises:
      UserError: a source asked for is missing or credentialed and not signed for, none is found, a file is malformed,
        `out` holds something else.
    """
    if contamination and contamination not in CONTAMINATION:
        raise UserError(f"--contamination={contamination}: unknown.{did_you_mean(contamination, CONTAMINATION)}")
    if mixture and sources:
        raise UserError("--sources and --mixture exclude each other: a mixture names its sources.")
    output.check_replaceable(out)
    own = own_sources(source_files)
    corpora = Corpora.of(raw_dir, raw or {}, own, signed, seed, gad_polarity)
    notes: dict[str, Any] = {"missing": [], "skipped": [], "warnings": unregistered(raw_dir)}
    if mixture:
        mixed = load_mixture(mixture)
    else:
        named = {source.name for name in (*sources, *(raw or {})) for source in sources_named(name)} | set(own)
        asked = named if sources or raw_dir is None else set()
        mixed = _all_found(corpora, named, asked, notes)
    batches = read_ingredients(mixed, corpora, notes)
    mode = contamination or mixed.contamination
    screened = screen(mode, batches, corpora, notes)
    train = [batch for batch in batches if batch.ingredient.into == "train"]
    if mixed.train_rows is not None:
        mixing.sample(train, mixed.train_rows, mixed.temperature, seed)
    if mixed.balance:
        mixing.balance_tasks(train, seed)
    rows = _ordered(batches, mixed, seed)
    credentialed = credentialed_in(row for found in rows.values() for row in found)
    manifest = {
        "format": FORMAT,
        "wording_seed": seed,
        "splits": {split: _written(found) for split, found in rows.items()},
        "sources": corpora.described,
        "licences": licences(corpora.described),
        "credentialed": credentialed,
        "mixture": mixture_facts(mixed, batches, seed) if mixture else None,
        "contamination": screened,
    }
    notes["warnings"] += _unused(own, mixed, corpora) + _differences(manifest)
    if corpora.mode != OPEN and not credentialed:
        notes["warnings"].append("The folder is closed to others, as files are that it was made of.")
    for warning in notes["warnings"]:
        logger.warning("%s", warning)
    output.write(out, rows, manifest, at_most=OWNER_ONLY if credentialed else corpora.mode)
    shown = ("sources", "licences", "credentialed", "mixture", "contamination")
    counts = {split: len(found) for split, found in rows.items()}
    return {"out": str(out), "rows": counts, **{name: manifest[name] for name in shown}, **notes}


def _all_found(corpora: Corpora, named: set[str], asked: set[str], notes: dict[str, Any]) -> Mixture:
    """Returns every readable split of every source, or of those asked for, as it is.

    Args:
      named: the sources that the user named: it is an error if they are missing or may not be read.
      asked: the only sources wanted; all where empty.
      notes: `missing` and `skipped` are added to.
    """
    ingredients = []
    for name, place in corpora.places.items():
        if asked and name not in asked:
            continue
        if place.absent and (name in named or name not in _SAMPLES):
            notes["missing"].append(lack(place))
        if not place.splits:
            if name in named:
                raise UserError(lack_text(lack(place)))
            continue
        reason = corpora.refusal(place.source)
        if reason:
            if name in named:
                raise UserError(reason)
            notes["skipped"].append({"source": name, "reason": reason})
            continue
        ingredients += [Ingredient(into=split, source=name, split=split) for split in place.splits]
    if not ingredients and not notes["skipped"]:
        raise UserError(
            f"No source found: --raw_dir must hold folders named as sources: {', '.join(list(SOURCES)[:3])}, ..."
        )
    return Mixture("what was asked for", tuple(ingredients), dedup=False)


def _unused(own: Mapping[str, Path], mixture: Mixture, corpora: Corpora) -> list[str]:
    """Returns a warning for each source of the user's that the mixture neither names nor finds in rows read by path."""
    used = {ingredient.source for ingredient in mixture.ingredients} | set(corpora.described)
    return [
        f"--source_file: {name} is not used, for {mixture.name} has no ingredient of this source."
        for name in own
        if name not in used
    ]


def _ordered(batches: Sequence[Batch], mixture: Mixture, seed: int) -> dict[str, list[Row]]:
    """Returns split -> rows, without the splits that have none."""
    present = dict.fromkeys(batch.ingredient.into for batch in batches)
    rows = {}
    for split in (*SPLITS, *(split for split in present if split not in SPLITS)):
        of_split = [batch for batch in batches if batch.ingredient.into == split]
        found = mixing.ordered(of_split, split in mixture.shuffle, seed)
        if found:
            rows[split] = found
    return rows


def _written(rows: list[Row]) -> dict[str, Any]:
    """Returns what the manifest says of a split as it is written."""
    sources = dict.fromkeys(row.source for row in rows)
    by_source = {name: [row for row in rows if row.source == name] for name in sources}
    return {
        "rows": len(rows),
        "rows_sha256": rows_sha256(rows),
        "sources": {name: {"rows": len(of), "gold_sha256": gold_sha256(of)} for name, of in by_source.items()},
    }


def _differences(manifest: Mapping[str, Any]) -> list[str]:
    """Returns a warning for each count that is not the published or expected one."""
    found = [
        f"{name} {split} {expected_text(facts)}."
        for name, source in manifest["sources"].items()
        for split, facts in source["splits"].items()
        if facts["differs"]
    ]
    mixture = manifest["mixture"]
    if mixture and mixture["train_rows_differ"]:
        found.append(
            f"{mixture['name']}: train has {mixture['train_rows_kept']} rows, train_rows = {mixture['train_rows']} are "
            "asked: the ingredients have no more, and no row is repeated."
        )
    for asked in mixture["ingredients"] if mixture else ():
        if asked["differs"] and not asked["missing"]:
            found.append(
                f"{mixture['name']}: {asked['into']} has {asked['kept']} rows of "
                f"{asked['path'] or asked['source']} {asked['split']}, {asked['asked']['rows']} are expected."
            )
    return found

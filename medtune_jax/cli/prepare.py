"""Turns native corpus files into instruction rows: {split}.parquet, manifest.json and a dataset card.

--raw_dir holds one folder per source, named as the source, with the files as distributed. Without --sources all that is
found there is prepared, and what is missing is listed with where to get it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from medtune_jax.errors import UserError

SUMMARY = "native corpora -> instruction rows, a manifest and a card"


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the verb's flags."""
    absl_flags.DEFINE_string("raw_dir", None, "Folder with one folder per source.", flag_values=flags)
    absl_flags.DEFINE_multi_string(
        "raw", [], "SOURCE=PATH: the folder of a source that lies elsewhere; repeatable.", flag_values=flags
    )
    absl_flags.DEFINE_string("out", None, "Folder to write; an earlier prepare's is replaced.", flag_values=flags)
    absl_flags.DEFINE_list("sources", [], "Sources to prepare, comma-separated; all found if empty.", flag_values=flags)
    absl_flags.DEFINE_integer("seed", 0, "Seed of the choice of instruction wordings.", flag_values=flags)


def run(flags: absl_flags.FlagValues) -> dict[str, Any]:
    """Prepares and returns what `data_prep.prepare.prepare` returns."""
    if not flags.out:
        raise UserError("--out is needed: the folder to write, such as --out=rows.")
    if not flags.raw_dir and not flags.raw:
        raise UserError("--raw_dir (one folder per source) or --raw=SOURCE=PATH is needed.")
    from medtune_jax.data_prep.prepare import prepare

    return prepare(
        Path(flags.out),
        raw_dir=Path(flags.raw_dir) if flags.raw_dir else None,
        raw=_overrides(flags.raw),
        sources=flags.sources,
        seed=flags.seed,
    )


def _overrides(values: Sequence[str]) -> dict[str, Path]:
    folders = {}
    for value in values:
        source, equals, folder = value.partition("=")
        if not (source and equals and folder):
            raise UserError(f"--raw={value}: SOURCE=PATH is expected, such as --raw=NCBI-disease=/data/ncbi.")
        folders[source] = Path(folder)
    return folders


def human(result: Mapping[str, Any]) -> str:
    """Returns what is printed: a table of sources and splits, what is missing, where the rows lie."""
    lines = [f"{'source':<18} {'split':<11} {'rows':>7}  gold"]
    for name, facts in result["sources"].items():
        for split, counts in facts["splits"].items():
            gold = f"{counts['mentions']} mentions" if "mentions" in counts else str(counts["labels"])
            official = ", official split" if counts["official_split"] else ""
            lines.append(f"{name:<18} {split:<11} {counts['rows']:>7}  {gold}{official}")
    for lack in result["missing"]:
        lines.append(f"missing: {lack['source']}: {', '.join(lack['files'])}. How to get it: {lack['where']}.")
    return "\n".join([*lines, f"rows: {result['out']}"])

"""Turns native corpus files into instruction rows: {split}.parquet, manifest.json and a dataset card.

--raw_dir holds one folder per source, named as the source, with the files as distributed. Without --sources and
--mixture all that is found there is prepared, each split as the corpus has it; what is missing is listed with its
files, its licence and where to get it. Counts are compared with the published ones, training text is looked for in
every test set at hand: differences and shared text are reported and stop nothing.

A corpus of your own is described in a TOML file (--source_file, docs/your_own_corpus.md), a composition of sources too
(--mixture, docs/mixtures.md). Credentialed text (MedNLI, i2b2/n2c2) is read only where --i_have_signed names its
source; what is written is then readable by you only.
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
    absl_flags.DEFINE_string(
        "mixture",
        "",
        "medtuned, bioinstruct, or a TOML file: which rows of which sources stand in which split, capped, drawn, "
        "deduplicated and shuffled as it says. What of it is missing is listed; the rest is prepared.",
        flag_values=flags,
    )
    absl_flags.DEFINE_multi_string(
        "source_file",
        [],
        "TOML file that defines a source of your own, prepared too; its files lie in --raw_dir/NAME or beside it. "
        "Repeatable.",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "seed",
        0,
        "Seed of the choice of instruction wordings, and of what a mixture draws and shuffles.",
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "gad_polarity",
        "association",
        ["association", "legacy"],
        "GAD's label 1 (an association is stated) is Positive; legacy: Negative, the inverted mapping of the "
        "Llama2-MedTuned authors.",
        flag_values=flags,
    )
    absl_flags.DEFINE_list(
        "i_have_signed",
        [],
        "Credentialed sources, comma-separated by name, whose agreement you have signed. Without it they are not read.",
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "contamination",
        None,
        ["report", "drop", "off"],
        "Training rows that share 13 consecutive words (or a shorter text as a whole) with a test set of any source "
        "found: report them, drop them, or do not look. As the mixture says, else report. What they share with the "
        "validation rows of the result is reported only.",
        flag_values=flags,
    )


def run(flags: absl_flags.FlagValues) -> dict[str, Any]:
    """Prepares and returns what `data_prep.prepare.prepare` returns."""
    if not flags.out:
        raise UserError("--out is needed: the folder to write, such as --out=rows.")
    if not (flags.raw_dir or flags.raw or flags.source_file or flags.mixture):
        raise UserError("--raw_dir (one folder per source) or --raw=SOURCE=PATH is needed.")
    from medtune_jax.data_prep.prepare import prepare

    return prepare(
        Path(flags.out),
        raw_dir=Path(flags.raw_dir) if flags.raw_dir else None,
        raw=_overrides(flags.raw),
        sources=flags.sources,
        source_files=[Path(file) for file in flags.source_file],
        mixture=flags.mixture,
        seed=flags.seed,
        gad_polarity=flags.gad_polarity,
        signed=flags.i_have_signed,
        contamination=flags.contamination or "",
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
    """Returns what is printed: tables of what was read, mixed and shared with test sets; what is missing."""
    from medtune_jax.data_prep.counts import expected_text, gold_text

    read = [("source", "split", "rows", "official", "published counts", "gold")]
    for name, facts in result["sources"].items():
        for split, counts in facts["splits"].items():
            official = counts["official_split"] or "-"
            read.append((name, split, counts["rows"], official, expected_text(counts), _short(gold_text(counts))))
    parts = [_table(read)]
    if result["mixture"]:
        parts.append(_mixture(result["mixture"]))
    parts.append(_contamination(result["contamination"]))
    parts += map(_missing, result["missing"])
    parts += [f"skipped: {skipped['reason']}" for skipped in result["skipped"]]
    if result["credentialed"]:
        parts.append(f"credentialed rows of {', '.join(result['credentialed'])}: the folder is readable by you only.")
    counts = ", ".join(f"{split} {count}" for split, count in result["rows"].items())
    return "\n".join([*parts, f"rows: {result['out']} ({counts})"])


def _mixture(mixture: Mapping[str, Any]) -> str:
    rows = [("mixed into", "source", "split", "found", "kept", "expected", "")]
    for part in mixture["ingredients"]:
        dropped = ", ".join(f"{reason}: {count}" for reason, count in part["dropped"].items())
        told = f"MISSING: {part['missing']}" if part["missing"] else dropped
        if part["differs"] and not part["missing"]:
            told = "; ".join(filter(None, ["differs", dropped]))
        expected = part["asked"]["rows"] or "-"
        rows.append(
            (part["into"], part["path"] or part["source"], part["split"], part["found"], part["kept"], expected, told)
        )
    return "\n" + _table(rows)


def _contamination(found: Mapping[str, Any]) -> str:
    if found["mode"] == "off" or not found["train_rows"]:
        return ""
    roles = [tested["role"] for tested in found["test_sets"]]
    summary = (
        f"Training text in {roles.count('test')} test sets: {found['shared_rows']} of {found['train_rows']} training "
        f"rows share {found['n']} words in a row (or a shorter text) with one; {found['dropped_rows']} dropped."
    )
    if "validation" in roles:
        summary += (
            f" In {roles.count('validation')} validation sets: {found['validation_shared_rows']} rows, reported only."
        )
    rows = [("train", "held out", "as", "train rows", "rows of it", "share of it", "same text")]
    for pair in found["pairs"]:
        test = f"{pair['test_source']} {pair['test_split']}"
        share = f"{100 * pair['test_share']:.2f} %"
        counts = (pair["train_rows"], pair["test_rows"], share, pair["identical_test_rows"])
        rows.append((pair["train_source"], test, pair["role"], *counts))
    return "\n".join(["", summary, *([_table(rows)] if found["pairs"] else []), ""])


def _missing(lack: Mapping[str, Any]) -> str:
    formats = [f"{form['format']} ({', '.join(form['files'])})" for form in lack["formats"]]
    signed = f" (credentialed: also give --i_have_signed={lack['source']})" if lack["credentialed"] else ""
    return "\n".join(
        [
            f"missing: {lack['source']}: {', '.join(lack['files'])}",
            f"  how to get it: {lack['where']}{signed}",
            f"  licence: {lack['licence']}",
            f"  put it at: {', '.join(lack['paths'])}",
            f"  read as: {'; or '.join(formats)}",
        ]
    )


def _short(text: str, width: int = 60) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _table(rows: Sequence[Sequence[object]]) -> str:
    """Returns lines of aligned columns, numbers to the right."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:>{width}}" if isinstance(cell, int) else f"{cell!s:<{width}}"
            for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    )

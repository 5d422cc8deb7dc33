"""The dataset card that is written beside prepared rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from medtune_jax.data_prep.counts import expected_text, gold_text
from medtune_jax.tasks.rows import COLUMNS
from medtune_jax.tasks.source import is_unknown_licence


def licences(sources: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns {"all": every licence of the sources, sorted, "unknown": the sources whose licence is not known}.

    Args:
      sources: the manifest's `sources`.
    """
    unknown = [name for name, facts in sources.items() if is_unknown_licence(facts["licence"])]
    return {"all": sorted({facts["licence"] for facts in sources.values()}), "unknown": unknown}


def render(manifest: Mapping[str, Any]) -> str:
    """Returns README.md for a prepared folder: the hub's front matter, what the rows are, what they may be used for."""
    sources: Mapping[str, Any] = manifest["sources"]
    mixture = manifest["mixture"]
    composed = " AND ".join(manifest["licences"]["all"])
    lines = [
        "---",
        "license: other",
        f"license_name: {json.dumps(composed, ensure_ascii=False)}",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *(f"  - split: {split}\n    path: {split}.parquet" for split in manifest["splits"]),
        "---",
        "",
        "# Instruction rows",
        "",
        f"Made by `medtune prepare` from {', '.join(sources)}; wording seed {manifest['wording_seed']}. Columns: "
        f"{', '.join(COLUMNS)}. Hashes of raw files, rows and gold answers are in `manifest.json`.",
        "",
        *_licence_lines(manifest),
    ]
    if mixture:
        lines += _mixture_lines(mixture)
    lines += [
        "| source | task | split | rows | gold | published counts | official split | dropped | licence |",
        "| --- | --- | --- | ---: | --- | --- | --- | --- | --- |",
        *(
            _row(
                *(name, facts["task"], split, read["rows"], gold_text(read), expected_text(read)),
                read["official_split"] or ("not known" if read["rows"] else "no rows"),
                *(_reasons(read["dropped"]), facts["licence"]),
            )
            for name, facts in sources.items()
            for split, read in facts["splits"].items()
        ),
        "",
        *_contamination_lines(manifest["contamination"]),
        "## Sources",
        "",
        *(f"- {name}: {facts['description']} {facts['where']}." for name, facts in sources.items()),
    ]
    return "\n".join(lines) + "\n"


def _licence_lines(manifest: Mapping[str, Any]) -> list[str]:
    lines = ["Each source keeps its own licence; the rows may be used only as all of them allow.", ""]
    if manifest["licences"]["unknown"]:
        lines += [f"The licence is not known of: {', '.join(manifest['licences']['unknown'])}.", ""]
    if manifest["credentialed"]:
        lines += [
            f"Credentialed sources are among them: {', '.join(manifest['credentialed'])}. These files are readable by "
            "their owner only and must not be passed on, nor sent to a service.",
            "",
        ]
    return lines


def _mixture_lines(mixture: Mapping[str, Any]) -> list[str]:
    described = f": {mixture['description']}" if mixture["description"] else ""
    return [
        f"## Mixture {mixture['name']}{described}",
        "",
        "| split | source | its split | found | kept | expected | dropped | missing |",
        "| --- | --- | --- | ---: | ---: | ---: | --- | --- |",
        *(
            _row(
                *(part["into"], part["path"] or part["source"], part["split"], part["found"], part["kept"]),
                *(part["asked"]["rows"] or "", _reasons(part["dropped"]), part["missing"]),
            )
            for part in mixture["ingredients"]
        ),
        "",
        "## What was read",
        "",
    ]


def _contamination_lines(found: Mapping[str, Any]) -> list[str]:
    if not found.get("test_sets"):
        return []
    lines = [
        "## Training text in held-out sets",
        "",
        f"Of {found['train_rows']} training rows {found['shared_rows']} share {found['n']} consecutive words "
        f"(a shorter text: all of its words) with a test set; {found['dropped_rows']} were dropped for it. "
        f"{found['validation_shared_rows']} share text with a validation set; none is dropped for that.",
        "",
    ]
    if found["pairs"]:
        lines += [
            "| train | held out | as | train rows | rows of it | share of it | its texts word for word in train |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: |",
        ]
    for pair in found["pairs"]:
        test = f"{pair['test_source']} {pair['test_split']}"
        share = f"{100 * pair['test_share']:.2f} %"
        counts = (pair["train_rows"], pair["test_rows"], share, pair["identical_test_rows"])
        lines.append(_row(pair["train_source"], test, pair["role"], *counts))
    return [*lines, ""] if found["pairs"] else lines


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "0"


def _row(*cells: object) -> str:
    """Returns a row of a Markdown table."""
    escaped = (str(cell).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"

"""The dataset card that is written beside prepared rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medtune_jax.tasks.rows import COLUMNS, SPLITS


def render(manifest: Mapping[str, Any]) -> str:
    """Returns README.md for a prepared folder: the hub's front matter, what the rows are, what they may be used for."""
    sources: Mapping[str, Any] = manifest["sources"]
    files = [f"  - split: {split}\n    path: {split}.parquet" for split in manifest["splits"]]
    licences = sorted({facts["licence"] for facts in sources.values()})
    lines = [
        "---",
        "license: other",
        f"license_name: {' AND '.join(licences)}",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *files,
        "---",
        "",
        "# Instruction rows",
        "",
        f"Made by `medtune prepare` from {', '.join(sources)}; wording seed {manifest['wording_seed']}. Columns: "
        f"{', '.join(COLUMNS)}. Hashes of raw files, rows and gold answers are in `manifest.json`.",
        "",
        "| source | task | split | rows | gold | official split | dropped | licence |",
        "| --- | --- | --- | ---: | --- | --- | --- | --- |",
    ]
    for name, facts in sources.items():
        for split in SPLITS:
            if split in facts["splits"]:
                lines.append(_table_row(name, split, facts))
    lines += ["", "Each source keeps its own licence; the rows may be used only as all of them allow.", ""]
    if any(facts["credentialed"] for facts in sources.values()):
        lines += ["Credentialed sources are among them: these files must not be passed on.", ""]
    lines += ["## Sources", ""]
    lines += [f"- {name}: {facts['description']} {facts['where']}." for name, facts in sources.items()]
    return "\n".join(lines) + "\n"


def _table_row(name: str, split: str, facts: Mapping[str, Any]) -> str:
    of_split = facts["splits"][split]
    if "mentions" in of_split:
        gold = f"{of_split['mentions']} mentions"
    else:
        gold = ", ".join(f"{label} {count}" for label, count in of_split["labels"].items())
    dropped = ", ".join(f"{reason}: {count}" for reason, count in of_split["dropped"].items()) or "0"
    cells = (
        name,
        facts["task"],
        split,
        str(of_split["rows"]),
        gold,
        of_split["official_split"] or "not known",
        dropped,
        facts["licence"],
    )
    return f"| {' | '.join(cells)} |"

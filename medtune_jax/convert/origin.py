"""What a model's weights were made from: the base checkpoint and the data, with the licence of each.

It travels as origin.json from run to export to the next run, so that a gated corpus is still known as such in a model
that was tuned on a model that was tuned on it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import find_source
from medtune_jax.tasks.rows import Row
from medtune_jax.tasks.source import UNKNOWN_LICENCE, is_unknown_licence

ORIGIN_FILE = "origin.json"


@dataclass(frozen=True)
class Data:
    """The training rows of one source.

    Attributes:
      rows: summed over all tunings.
      licence: as the registry or the user's source file says it; UNKNOWN_LICENCE for a source that neither knows.
    """

    rows: int
    licence: str
    credentialed: bool


@dataclass(frozen=True)
class Origin:
    """Attributes:
    base: name of the first checkpoint; base_licence: as its card says it, UNKNOWN_LICENCE where it says nothing.
    data: source -> its rows, of every tuning since.
    """

    base: str
    base_licence: str
    data: Mapping[str, Data] = field(default_factory=dict)

    @property
    def credentialed(self) -> list[str]:
        """The sources that may not be passed on without their owner's consent."""
        return sorted(name for name, data in self.data.items() if data.credentialed)

    @property
    def licence(self) -> str:
        """The licence of the base and of all data, joined by AND; each must be kept."""
        return " AND ".join(dict.fromkeys([self.base_licence, *sorted({data.licence for data in self.data.values()})]))

    @property
    def unlicensed(self) -> list[str]:
        """What has no known licence: the base, sources."""
        base = [f"the base checkpoint {self.base}"] if is_unknown_licence(self.base_licence) else []
        return base + [f"source {name}" for name, data in sorted(self.data.items()) if is_unknown_licence(data.licence)]


def read_origin(folder: Path) -> Origin:
    """Returns the origin of a checkpoint or run: its origin.json, else its folder's name and the licence of its card.

    Raises:
      UserError: origin.json is damaged, or a run has none; a gated corpus must not be forgotten.
    """
    path = folder / ORIGIN_FILE
    if (folder / "checkpoints").is_dir():
        path = folder / "model" / ORIGIN_FILE
        if not path.is_file():
            raise UserError(
                f"{folder} is a run without {path.relative_to(folder)}: which data the model was tuned on, and whether "
                f"it may be passed on, is not known. Give the run's command again (medtune train --workdir={folder}): "
                "it writes the file, also where all steps are done. Or train again."
            )
    if not path.is_file():
        return Origin(folder.absolute().name, _card_licence(folder / "README.md"))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        data = {name: Data(**facts) for name, facts in found.pop("data").items()}
        return Origin(**found, data=data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): it says which data the model was tuned on.") from None


def tuned(base: Origin, rows: Sequence[Row]) -> Origin:
    """Returns the origin of a model that starts from `base` and is tuned on `rows`."""
    data = dict(base.data)
    for name, count in sorted(Counter(row.source for row in rows).items()):
        source = find_source(name)
        own = source.name if source else name or "(blank)"
        before = data[own].rows if own in data else 0
        terms = (source.licence, source.credentialed) if source else (UNKNOWN_LICENCE, False)
        data[own] = Data(before + count, *terms)
    return Origin(base.base, base.base_licence, data)


def with_adapter(base: Origin, folder: Path) -> Origin:
    """Returns the origin of `base` with the adapter of `folder` on it: the adapter's data and licence count too.

    Raises:
      UserError: its origin.json is damaged.
    """
    adapter = read_origin(folder)
    if not (folder / ORIGIN_FILE).is_file():  # of others: all that is known is its card
        return replace(base, data={**base.data, f"adapter {adapter.base}": Data(0, adapter.base_licence, False)})
    data = dict(base.data)
    for name, own in adapter.data.items():
        data[name] = replace(own, rows=own.rows + (data[name].rows if name in data else 0))
    return replace(base, data=data)


def origin_json(origin: Origin) -> dict[str, Any]:
    """Returns what origin.json holds."""
    return asdict(origin)


def model_card(origin: Origin, about: Mapping[str, str], library: str = "transformers") -> str:
    """Returns README.md for an exported model: the hub's front matter, what it was made from, under which licences.

    about: lines of the card; library: the hub's name of what loads the model.
    """
    lines = [
        "---",
        "license: other",
        f"license_name: {json.dumps(origin.licence, ensure_ascii=False)}",  # as a YAML string: it may hold ": " or "#"
        f"library_name: {library}",
        "tags: [medtune-jax, instruction-tuning, biomedical]",
        "---",
        "",
        f"# {origin.base}{', tuned' if origin.data else ''}",
        "",
        f"Written by medtune_jax. Licence: {origin.licence}. Each of them applies: the base checkpoint's, and that of "
        "all data.",
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
        "",
        "| data | rows | licence |",
        "| --- | ---: | --- |",
        *(f"| {name} | {data.rows} | {data.licence} |" for name, data in sorted(origin.data.items())),
    ]
    if origin.credentialed:
        lines += [
            "",
            f"Tuned on text under a data use agreement ({', '.join(origin.credentialed)}): a model can repeat what it "
            "was tuned on, so these weights may be passed on only as the agreement allows.",
        ]
    if origin.unlicensed:
        lines += ["", f"No licence is known of {', '.join(origin.unlicensed)}: find out before you pass this on."]
    return "\n".join(lines) + "\n"


def _card_licence(card: Path) -> str:
    """Returns `license_name` or `license` of a model card's front matter."""
    if not card.is_file():
        return UNKNOWN_LICENCE
    front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.S)
    found = dict(re.findall(r"^(license|license_name):[ \t]*(\S.*?)[ \t]*$", front[1] if front else "", re.M))
    return _unquoted(found.get("license_name") or found.get("license") or "") or UNKNOWN_LICENCE


def _unquoted(scalar: str) -> str:
    """Returns the text of a YAML scalar on one line; what is not well quoted stands for itself."""
    if re.fullmatch(r"'(''|[^'])*'", scalar):
        return scalar[1:-1].replace("''", "'")
    if scalar.startswith('"'):
        with suppress(ValueError):
            return str(json.loads(scalar))
    return scalar

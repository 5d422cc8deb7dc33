"""The instruction wordings of the built-in sources, joined, and the seeded choice of one per row.

All sentences were written for this project.
"""

from __future__ import annotations

import hashlib

from medtune_jax.data_prep.native import GadPolarity
from medtune_jax.data_prep.wordings import labels as wordings_labels
from medtune_jax.data_prep.wordings import ner as wordings_ner
from medtune_jax.data_prep.wordings import qa as wordings_qa
from medtune_jax.tasks.source import Source

WORDINGS: dict[str, tuple[str, ...]] = {
    **wordings_ner.WORDINGS,
    **wordings_labels.WORDINGS,
    **wordings_qa.WORDINGS,
}


def wordings_of(source: Source, gad_polarity: GadPolarity = "association") -> tuple[str, ...]:
    """Returns a source's wordings: its own where a user defined it, else those written here; () where its rows bring
    their own instructions. GAD's say of each of its two words what it means under the polarity."""
    if source.name == "GAD" and gad_polarity == "legacy":
        return wordings_labels.LEGACY_GAD
    return source.wordings or WORDINGS.get(source.name, ())


def choose(source: Source, split: str, row: int, seed: int) -> int:
    """Returns the index in `wordings_of(source)` of the wording of a row: a hash of (seed, source, split, row), so that
    it depends on no other row, library or machine. Uniform up to 2**-64."""
    digest = hashlib.blake2b(f"{seed}/{source.name}/{split}/{row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % len(wordings_of(source))

"""The gate before credentialed text: who prepares it says, source by source, that they have signed for it.

The gate keys on the row's source, whatever reader the row came through.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from medtune_jax.tasks.registry import find_source, sources_named
from medtune_jax.tasks.rows import Row
from medtune_jax.tasks.source import Source

FLAG = "i_have_signed"


def signed_sources(names: Sequence[str]) -> frozenset[str]:
    """Returns the registry names of what --i_have_signed names; a name may stand for all that share a raw folder.

    Raises:
      UserError: an unknown name.
    """
    return frozenset(source.name for name in names for source in sources_named(name))


def refusal(source: Source, signed: Collection[str]) -> str:
    """Returns why rows of the source may not be prepared, "" where they may."""
    if not source.credentialed or source.name in signed:
        return ""
    return (
        f"{source.name} is credentialed: only people who signed its agreement may use it (licence: {source.licence}; "
        f"where to sign and get it: {source.where}). If you have signed, say so: --{FLAG}={source.name}."
    )


def credentialed_in(rows: Iterable[Row]) -> list[str]:
    """Returns the sorted names of the credentialed sources of rows."""
    found = (find_source(name) for name in {row.source for row in rows})
    return sorted({source.name for source in found if source is not None and source.credentialed})

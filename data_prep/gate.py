"""The gate before credentialed text: who prepares it says, source by source, that they have signed for it.

The gate keys on the row's source, whatever reader the row came through. Of a source that is not known it cannot say
whether it is credentialed: there the mode of the files tells, for what is made of closed files is closed too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from medtune_jax.tasks.registry import sources_named
from medtune_jax.tasks.source import Source

FLAG = "i_have_signed"
OPEN = 0o777  # mode of what anyone may read
OWNER_ONLY = 0o700


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


def tightest_mode(folder: Path, files: Iterable[Path]) -> int:
    """Returns the mode that what is made of files may have at most.

    It is closed to the group, or to others, where one of the files, a file below one that is a folder, or the folder in
    which they lie is not readable by them.
    """
    mode = OPEN
    below = [inner for file in files for inner in (file, *file.rglob("*"))]
    for path in (folder, *below):
        readable = path.stat().st_mode if path.exists() else 0o777  # a link to nothing
        mode &= OPEN if readable & 0o040 else 0o707
        mode &= OPEN if readable & 0o004 else 0o770
    return mode

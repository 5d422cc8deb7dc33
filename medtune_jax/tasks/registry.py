"""The sources by name: the built-in ones (tasks/sources/) and those that a user has defined.

Names equal the `source` column of nlpie/Llama2-MedTuned-Instructions. Hashes of official splits are `gold_sha256` of
the rows that `medtune prepare` renders from the files as distributed.
"""

from __future__ import annotations

import functools
import re

from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.tasks.source import Source
from medtune_jax.tasks.sources import classification, generation, ner, questions, samples

SOURCES: dict[str, Source] = {
    source.name: source for module in (ner, classification, questions, generation, samples) for source in module.SOURCES
}


@functools.lru_cache(maxsize=4096)  # asked for every row
def _folded(name: str) -> str:
    """Returns what tells names apart: letter case, white space, hyphens and underscores do not.

    Whether rows are under agreement is asked by name, so that "Med NLI " must not be another corpus than MedNLI.
    """
    return re.sub(r"[\s_-]+", "", name).casefold()


_BUILT_IN = frozenset(SOURCES)
_BY_ANY_NAME = {_folded(name): source for source in SOURCES.values() for name in (source.name, *source.aliases)}


def register(source: Source) -> None:
    """Adds a user's source to this process, or replaces the user's own of the same name.

    Raises:
      UserError: its name or an alias is that of a built-in source.
    """
    for name in (source.name, *source.aliases):
        known = find_source(name)
        if known is not None and known.name in _BUILT_IN:
            raise UserError(f"'{name}' is the built-in source {known.name}: give your own another name.")
    for name, known in list(_BY_ANY_NAME.items()):
        if known.name == source.name:
            del _BY_ANY_NAME[name]
    SOURCES[source.name] = source
    _BY_ANY_NAME.update({_folded(name): source for name in (source.name, *source.aliases)})


def find_source(name: str) -> Source | None:
    """Returns the source of this name or alias, or None; letter case, white space, "-" and "_" tell no names apart."""
    return _BY_ANY_NAME.get(_folded(name))


def get_source(name: str) -> Source:
    """Returns the source of this name or alias, as `find_source` does.

    Raises:
      UserError: there is none; says which name is close, or all names.
    """
    source = find_source(name)
    if source is None:
        raise UserError(f"Unknown source '{name}'.{did_you_mean(name, SOURCES)}")
    return source


def quoted(text: str, source: str, limit: int = 80) -> str:
    """Returns a row's text in quotes for an error message, shortened; of a source that may be gated its length only.

    Messages end in logs and in reports of defects, where the text of a corpus under agreement must not be.
    """
    known = find_source(source)
    if known is None or known.credentialed:
        return f"(text of {'an unknown' if known is None else 'a credentialed'} source, {len(text):,} characters)"
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def sources_named(name: str) -> list[Source]:
    """Returns the sources that a name stands for: one by name or alias, or all that share the raw folder of that name.

    Raises:
      UserError: there is none.
    """
    if find_source(name) is None:
        sharing = [source for source in SOURCES.values() if source.folder and _folded(source.folder) == _folded(name)]
        if sharing:
            return sharing
    return [get_source(name)]

"""All readers of native formats by name; a module of readers holds its own READERS."""

from __future__ import annotations

from medtune_jax.data_prep import conll, labelled
from medtune_jax.data_prep.native import Reader

READERS: dict[str, Reader] = {
    **conll.READERS,
    **labelled.READERS,
}

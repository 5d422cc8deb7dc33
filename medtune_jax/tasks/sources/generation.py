"""Instructions answered in free text: dialogues, notes, mixed instructions."""

from __future__ import annotations

from medtune_jax.tasks.source import Source

SOURCES: tuple[Source, ...] = ()

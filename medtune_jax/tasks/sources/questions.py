"""Questions with a known answer: multiple choice, yes or no, lists."""

from __future__ import annotations

from medtune_jax.tasks.source import Source

SOURCES: tuple[Source, ...] = ()

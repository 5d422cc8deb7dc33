"""Corpora whose rows have one label or a set of labels: relations, inference, documents."""

from __future__ import annotations

from medtune_jax.tasks.source import Source

SOURCES: tuple[Source, ...] = ()

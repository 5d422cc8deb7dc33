"""Instruction wordings of the question and generation sets."""

from __future__ import annotations

WORDINGS: dict[str, tuple[str, ...]] = {}

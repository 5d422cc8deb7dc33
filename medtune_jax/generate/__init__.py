"""Sampling methods, decode loops, template decoding, the engine."""

"""Rows to predictions, scores and reports."""

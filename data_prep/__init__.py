"""Readers of native corpus formats, instruction wordings, mixtures: raw files to instruction rows."""

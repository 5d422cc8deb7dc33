"""Prompts, tokens, loss masks, packing, batches."""

"""Hugging Face directories to parameters and back."""

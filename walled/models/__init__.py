"""Data only: the built-in demonstration model and its training record."""

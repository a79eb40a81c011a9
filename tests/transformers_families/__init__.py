"""Tiny checkpoints of the families that transformers implements, and what transformers answers."""

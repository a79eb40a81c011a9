"""Grammars of answers: compiled by llguidance, and applied token by token."""

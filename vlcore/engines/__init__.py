"""Engines: token ids and image rows in, text out, token by token."""

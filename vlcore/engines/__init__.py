"""Engines: token ids and image embeddings in, text out, token by token."""

"""Engines: they continue prompts of token ids and image embeddings, and stream the text."""

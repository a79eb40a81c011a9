"""The OpenAI-compatible HTTP server: ``vlcore serve`` (extra ``vlcore[serve]``)."""

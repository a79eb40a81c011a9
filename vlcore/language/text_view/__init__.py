"""The text view: a checkpoint's language model as an ordinary text checkpoint on disk."""

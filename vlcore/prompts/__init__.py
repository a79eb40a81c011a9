"""Prompts: from the messages of a conversation to the token ids of its prompt."""

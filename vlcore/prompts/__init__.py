"""From a conversation to the token ids of its prompt."""

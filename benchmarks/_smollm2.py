"""The shape of SmolLM2-135M, a Llama small enough for every machine."""

from __future__ import annotations

from typing import Any

VOCAB_SIZE = 49152
SMOLLM2_135M: dict[str, Any] = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}

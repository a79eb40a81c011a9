"""The tokenizer of a model, as llguidance should read it.

llguidance takes every added token for a special one, which no text contains. Added tokens that are
not special, such as ``<box>``, are text of an answer. So is ``</s>`` where a grammar requires these
characters; llguidance would write them as the special token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_PLAIN = re.compile("[!-~]+")
"""Characters that every vocabulary writes as they are."""


def read_backend(backend: Any) -> tuple[str, Any]:
    """Return a tokenizer as JSON for llguidance, and one for text.

    Args:
        backend: a tokenizer of the tokenizers library.

    Returns:
        The JSON, without truncation and padding, which llguidance refuses, and without added tokens
        that are text; and a tokenizer that knows these and no special tokens, or ``None`` where
        there are no added tokens, or it cannot split text without a space before it.
    """
    from tokenizers import Tokenizer

    values = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    vocabulary = values["model"].get("vocab")
    added = values["added_tokens"]
    if not isinstance(vocabulary, dict):
        return json.dumps(values), None
    # Added tokens that are not in the vocabulary would be numbered again.
    vocabulary |= {token["content"]: token["id"] for token in added}
    text = [token for token in added if not token["special"] and _PLAIN.fullmatch(token["content"])]
    others = [token for token in added if token not in text]
    as_json = json.dumps(values | {"added_tokens": others})
    if not added:
        return as_json, None
    tokenizer = Tokenizer.from_str(
        json.dumps(_without_prefix(values) | {"added_tokens": text, "post_processor": None})
    )
    is_plain = tokenizer.encode("a", add_special_tokens=False).tokens == ["a"] and all(
        tokenizer.encode(token["content"]).ids == [token["id"]] for token in text
    )  # a tokenizer that adds a prefix to every text is of no use here
    return as_json, tokenizer if is_plain else None


def _without_prefix(value: Any) -> Any:
    """Return a part of a tokenizer's JSON without what puts a space before every text."""
    if isinstance(value, list):
        return [_without_prefix(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    never = {"add_prefix_space": False, "prepend_scheme": "never"}
    return {
        key: item if key in ("model", "added_tokens") else never.get(key, _without_prefix(item))
        for key, item in value.items()
    }


class TextTokenizer:
    """The tokenizer that llguidance splits text with that the grammar leaves no choice about.

    Args:
        ll_tokenizer: llguidance's tokenizer, which knows the bytes of each token.
        tokenizer: splits the text.
        eos_token_ids: the model's end tokens.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, ll_tokenizer: Any, tokenizer: Any, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        token_ids = range(ll_tokenizer.vocab_size)
        self.eos_token_id = eos_token_ids[0]
        self.tokens = [ll_tokenizer.decode_bytes([token_id]) for token_id in token_ids]
        self.special_token_ids = list(filter(ll_tokenizer.is_special_token, token_ids))

    def __call__(self, text: str) -> list[int]:
        """Split a text into tokens."""
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return token_ids

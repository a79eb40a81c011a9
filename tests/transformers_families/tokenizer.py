"""A tokenizer of bytes that knows the special tokens of every family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_FIRST = ("<pad>", "<s>", "</s>", "<unk>")
_SPECIAL = Path(__file__).with_name("special_tokens.txt").read_text(encoding="utf-8").splitlines()
_GRID = [(row, column) for row in range(1, 4) for column in range(1, 4)]


def special_tokens() -> list[str]:
    """Return the special tokens, in the order of their ids."""
    return [
        *_FIRST,
        *_SPECIAL,
        *(f"<row_{row}_col_{column}>" for row, column in _GRID),
        *(f"<|img_row_{row}_col_{column}|>" for row, column in _GRID),
        *(f"<|visual token {number:06d}|>" for number in range(16)),
    ]


def build_tokenizer(tokens: Mapping[str, Any], *, has_bos: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose token of a byte is the byte, with named special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*_FIRST, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special_tokens()]
    )
    if has_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=dict(tokens),
    )

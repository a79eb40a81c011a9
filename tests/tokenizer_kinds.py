"""Small tokenizers of each kind, and prompts that they tokenize."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vlcore.prompts.tokenization import PromptTokenizer

GOLDEN = Path(__file__).parent / "golden"
CONTROL = ("<s>", "</s>", "<|im_end|>", "<image>", "[INST]")
FILLER = PromptTokenizer.filler_id


def sentencepiece(name: str) -> PreTrainedTokenizerBase:
    """Load one of the golden tokenizers."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(GOLDEN / name)
    return tokenizer


def wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]


def fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap a backend, with special tokens and one that only looks like one."""
    special = [AddedToken(text, special=True, normalized=False) for text in CONTROL[:4]]
    backend.add_special_tokens(special)
    backend.add_tokens([AddedToken("[INST]", special=False, normalized=False)])
    backend.add_tokens([AddedToken("ordinary", special=False, normalized=False)])
    return wrap(backend)


def byte_level(*, merges: Sequence[tuple[str, str]] = (), **options: Any) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*CONTROL, *alphabet]
    words += [left + right for left, right in merges if left + right not in words]
    vocabulary = {word: token_id for token_id, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), **options))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def bpe() -> PreTrainedTokenizerFast:
    return fast(byte_level(merges=[("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o")]))


def bpe_that_merges_control_text() -> PreTrainedTokenizerFast:
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("</s>", "x"), ("<", "s>"), ("h", "e")]
    return fast(byte_level(merges=merges))


def bpe_that_looks_words_up_first() -> PreTrainedTokenizerFast:
    backend = byte_level(ignore_merges=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    return fast(backend)


def unigram() -> PreTrainedTokenizerFast:
    entries = [("<unk>", 0.0), *((text, -1.0) for text in CONTROL)]
    entries += [(character, -3.0) for character in "abcdehilmnorsx ▁<>/|_[]INST"]
    backend = Tokenizer(models.Unigram(entries, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return fast(backend)


def unigram_without_brackets() -> PreTrainedTokenizerFast:
    entries = [("<unk>", 0.0), *((text, -1.0) for text in CONTROL)]
    entries += [(character, -3.0) for character in "abcdehilmnorsx▁"]
    return fast(Tokenizer(models.Unigram(entries, unk_id=0)))


def word_level() -> PreTrainedTokenizerFast:
    words = ["[UNK]", *CONTROL, "hello", "x"]
    vocabulary = {word: token_id for token_id, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return fast(backend)


def word_piece() -> PreTrainedTokenizerFast:
    words = ["[UNK]", *CONTROL, "hello", "x", *"<>/s|", *(f"##{letter}" for letter in "<>/s|")]
    vocabulary = {word: token_id for token_id, word in enumerate(words)}
    backend = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return fast(backend)


KINDS = {
    "llava": lambda: sentencepiece("tokenization_llava"),
    "nobos": lambda: sentencepiece("tokenization_nobos"),
    "bpe": bpe,
    "bpe_that_merges_control_text": bpe_that_merges_control_text,
    "bpe_that_looks_words_up_first": bpe_that_looks_words_up_first,
    "unigram": unigram,
    "unigram_without_brackets": unigram_without_brackets,
    "word_level": word_level,
    "word_piece": word_piece,
}


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokenizer's own ids, without what it puts before every text."""
    encoded: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return encoded

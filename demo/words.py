"""The tokenizer: a small Llama-style sentencepiece model, and prompts as token ids."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece as spm

BOS, EOS = 1, 2

_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
    "model_max_length": 1024,
}
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _train(lines: list[str], size: int) -> bytes:
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        required_chars="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:?!'",
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def train_tokenizer(texts: list[str]) -> bytes:
    """Train the smallest vocabulary in which every word of the texts is one token."""
    words = sorted({word.strip("?.,:") for text in texts for word in text.split()} - {"user's"})
    first = sorted({text.split()[0] for text in texts})
    # Each word as often as any other, so that rare words get a token too. The bracket gives
    # the tokens without a space, for the word right after a line break.
    lines = [f"{word} {word}? {word}. {word}: {word}," for word in words for _ in range(50)]
    lines += [f"({word}" for word in first for _ in range(200)]
    for size in range(400, 1000, 10):
        model = _train(lines, size)
        known = Words(model)
        if all(len(known.encode(word)) == 1 for word in words) and all(
            len(known.encode("\n" + word)) == 3 for word in first
        ):
            return model
    raise RuntimeError("no vocabulary holds all words")


def write_tokenizer(model: bytes, folder: Path) -> None:
    """Write the three files of a Llama tokenizer."""
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps(_CONFIG, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(_SPECIAL, indent=2) + "\n")


class Words:
    """Token ids of the texts that a conversation consists of."""

    def __init__(self, model: bytes) -> None:
        self._processor = spm.SentencePieceProcessor(model_proto=model)
        self.size: int = self._processor.get_piece_size()
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Encode a chunk by itself; its first token has the dummy prefix."""
        if text not in self._cache:
            self._cache[text] = self._processor.encode(text)
        return self._cache[text]

    def phrase(self, text: str, line: bool) -> list[tuple[int, int]]:
        """Encode word by word: (token id, end of its word in the text) for every token.

        With `line`, the text follows a line break, at the start of a chunk. Tokens never
        span a space, so these are the ids of the whole text.
        """
        found: list[tuple[int, int]] = []
        end = 0
        for number, word in enumerate(text.split(" ")):
            end += len(word) + bool(number)
            ids = self.encode("\n" + word if line and not number else word)
            found += [(token, end) for token in ids]
        return found

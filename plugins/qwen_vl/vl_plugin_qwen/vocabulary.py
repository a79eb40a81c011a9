"""A fast tokenizer from ``qwen.tiktoken``, without remote code.

The file has the bytes of each token and its rank. A byte-pair tokenizer merges the neighbours whose
concatenation has the lowest rank, so the ranks are the order of its merges.

Source: ``tokenization_qwen.py`` of the Qwen-VL reference implementation.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlcore import CheckpointError, CheckpointNotFoundError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FILENAME = "qwen.tiktoken"
END_OF_TEXT = "<|endoftext|>"
CONTROL = (END_OF_TEXT, "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
NOTATION = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
"""Tokens that are part of a completion's text, and stay in it when special tokens are skipped."""
IMAGE = ("<img>", "</img>", "<imgpad>")
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a ``.tiktoken`` file.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointError: the file is damaged.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
    from transformers import PreTrainedTokenizerFast

    tokens = read_tokens(path)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    # A word that is a token is not split, as in the tiktoken library.
    model = models.BPE(
        vocab={_as_text(token): rank for token, rank in ranks.items()},
        merges=[(_as_text(left), _as_text(right)) for left, right in _merges(tokens, ranks)],
        ignore_merges=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(_SPLIT), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(text, special=text not in NOTATION, normalized=False)
            for text in (*CONTROL, *NOTATION, *IMAGE)
        ]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def read_tokens(path: Path) -> list[bytes]:
    """Read the bytes of each token, by rank.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointError: a line is damaged, or ranks or bytes are missing.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CheckpointNotFoundError(
            f"the tokenizer's file {path} cannot be read: {error}. Download it again"
        ) from error
    tokens: list[bytes] = []
    for number, line in enumerate(lines, start=1):
        text, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(text, validate=True)
            if int(rank) != len(tokens) or not token:
                raise ValueError(f"rank {len(tokens)} is expected")
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(
                f"line {number} of {path} is {line[:40]!r}, where a token in base64 and its rank "
                f"are expected: {error}. The download may be incomplete, or a Git LFS pointer"
            ) from error
        tokens.append(token)
    known = set(tokens)
    missing = [byte for byte in range(256) if bytes([byte]) not in known]
    if missing or len(known) < len(tokens):
        raise CheckpointError(
            f"{path} is damaged: {len(tokens) - len(known)} of its {len(tokens)} tokens are "
            f"duplicates, and {len(missing)} of the 256 bytes are missing"
        )
    return tokens


def _merges(tokens: Sequence[bytes], ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the pairs that form each token, the lowest rank first."""
    for token in tokens:
        pairs = [
            (token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in ranks and token[cut:] in ranks
        ]
        yield from sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _as_text(token: bytes) -> str:
    """Convert bytes to the printable characters that represent them in a byte-level tokenizer."""
    return token.decode("latin-1").translate(_CHARACTERS)


def _characters() -> dict[int, int]:
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: 0x100 + number for number, byte in enumerate(others)}


_CHARACTERS = _characters()

"""A self-test at start-up: injected embeddings must have the effect of the tokens they belong to.

No library guarantees this in any other way, and a mistake would make every answer about an image
wrong without an error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, cat

from vlcore._version import __version__
from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.engines.base import Engine, EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.errors import EngineUnavailableError
from vlcore.prompts.tokenization import Span, TokenizedPrompt

_NUM_PROMPTS = 4
_NUM_BEFORE = 3
"""Number of tokens before the positions whose embeddings are injected."""
_NUM_AFTER = 2
"""Number of tokens after them."""
_TOLERANCE = 0.1
"""Maximum difference, relative to the standard deviation of the logits: more than rounding errors
cause, and much less than other tokens cause."""

Scores = Callable[[Engine, TokenizedPrompt, tuple[Tensor, ...]], Awaitable[Tensor]]
"""Returns the logits of the token after a prompt with image embeddings, up to a constant.

Shapes:
    result: [vocab] float32.
"""


async def run_self_test(
    engine: Engine,
    view: Path,
    embedding: str,
    scores: Scores,
    library: str,
    *,
    prompt_length: int = 16,
    has_prefix_cache: bool = False,
) -> None:
    """Compare the next token's logits with and without injected embeddings.

    Each prompt is continued twice: once as token ids, and once with the token embeddings of its
    middle part injected. The logits are compared rather than the next tokens, so that two tokens of
    nearly equal likelihood do not matter. The requests run one at a time, so that the same kernels
    see the same shapes.

    Args:
        engine: the engine to test.
        view: the directory from which it was loaded.
        embedding: name of the token embedding's weight in that directory.
        scores: asks the engine for the logits of the next token.
        library: name and version of the engine's library, for the message.
        prompt_length: length of the prompts, in tokens.
        has_prefix_cache: whether the engine reuses the beginnings of prompts with images. Each
            prompt is then first continued with embeddings of other tokens, whose cached keys and
            values must not be used for the right ones.

    Raises:
        EngineUnavailableError: the logits differ, or the width of the token embedding does not
            match the engine's.
    """
    for number in range(_NUM_PROMPTS):
        token_ids = _spread_ids(number, prompt_length, engine.vocab_size)
        begin, end = _NUM_BEFORE, prompt_length - _NUM_AFTER
        rows = read_rows(view, embedding, token_ids[begin:end])
        if rows.shape[1] != engine.hidden_size:
            raise EngineUnavailableError(
                f"the token embedding of {view} has width {rows.shape[1]}; the language model has "
                f"width {engine.hidden_size}"
            )
        plain = await scores(engine, TokenizedPrompt(token_ids), ())
        prompt = TokenizedPrompt(token_ids, (Span(begin, end, 0, 0),))
        if has_prefix_cache:
            await scores(engine, prompt, (rows.flip(0),))
        injected = await scores(engine, prompt, (rows,))
        difference = float((plain - injected).abs().max() / plain.std())
        if not difference <= _TOLERANCE:  # NaN is not, either
            raise EngineUnavailableError(
                f"{library} continues token ids with token {int(plain.argmax())}, and the same "
                f"tokens as embeddings with token {int(injected.argmax())} (the logits differ by "
                f"{difference:.2g} standard deviations), so its answers about images would be "
                f"wrong. vlcore {__version__} does not run with this {library}: use "
                "engine='transformers', and report both versions"
            )


def read_rows(view: Path, name: str, token_ids: Sequence[int]) -> Tensor:
    """Read rows of a text view's token embedding, without reading the whole weight.

    Shapes:
        result: [token ids, hidden_size], in the stored dtype.
    """
    with safe_open(Checkpoint(view).file_of(name), "pt") as file:
        table = file.get_slice(name)
        return cat([table[token_id : token_id + 1] for token_id in token_ids])


def _spread_ids(number: int, length: int, vocab_size: int) -> tuple[int, ...]:
    """Return token ids spread over the vocabulary, different ones for each number."""
    total = _NUM_PROMPTS * length
    return tuple(
        (number + _NUM_PROMPTS * position) * vocab_size // total for position in range(length)
    )


async def next_logits(engine: Engine, prompt: TokenizedPrompt, rows: tuple[Tensor, ...]) -> Tensor:
    """Return the logits of the token after a prompt, of an engine that returns logits.

    Shapes:
        result: [vocab] float32.
    """
    config = GenerationConfig(max_new_tokens=1, ignore_eos=True, output_logits="generation")
    async with aclosing(engine.generate(EngineRequest(prompt, rows, config))) as chunks:
        first = await anext(chunks)
    assert first.logits is not None  # noqa: S101  (for mypy: the request asks for them)
    return first.logits[0]

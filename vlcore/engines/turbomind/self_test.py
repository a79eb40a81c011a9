"""A test at start-up: rows of the token table, given as embeddings, must count as their tokens.

Nothing else in TurboMind's test suite or interface promises that, and a mistake would answer every
question about a picture wrongly without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, cat

from vlcore._version import __version__
from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.engines.base import Engine, EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.turbomind.support import lmdeploy_version
from vlcore.errors import EngineUnavailableError
from vlcore.prompts.tokenization import Span, TokenizedPrompt

_NUM_PROMPTS = 4
_PROMPT_LENGTH = 16
_COVERED = (3, 14)
"""Begin and end of the positions whose rows are injected."""
_TOLERANCE = 0.1
"""Of the logits' standard deviation: more than rounding, and far less than other tokens make."""
_CONFIG = GenerationConfig(max_new_tokens=1, ignore_eos=True, output_logits="generation")


async def run_self_test(engine: Engine, view: Path, embedding: str) -> None:
    """Ask what follows prompts of token ids, and again with rows for the tokens in their middle.

    Both must give the same next token; its logits are compared, so that two tokens that are all
    but equally likely may change places, and nothing else may. One request runs at a time, so that
    both times the same kernels see the same shapes.

    Args:
        engine: what is tested.
        view: the directory that it was loaded from.
        embedding: the token table's name there.

    Raises:
        EngineUnavailableError: the two differ, or the token table does not fit the engine.
    """
    for number in range(_NUM_PROMPTS):
        token_ids = _spread_ids(number, engine.vocab_size)
        begin, end = _COVERED
        rows = read_rows(view, embedding, token_ids[begin:end])
        if rows.shape[1] != engine.hidden_size:
            raise EngineUnavailableError(
                f"the token table of {view} has rows of width {rows.shape[1]}; the language "
                f"model's embeddings have {engine.hidden_size}"
            )
        plain = await _next_logits(engine, EngineRequest(TokenizedPrompt(token_ids), (), _CONFIG))
        prompt = TokenizedPrompt(token_ids, (Span(begin, end, 0, 0),))
        injected = await _next_logits(engine, EngineRequest(prompt, (rows,), _CONFIG))
        difference = float((plain - injected).abs().max() / plain.std())
        if not difference <= _TOLERANCE:  # NaN is not, either
            raise EngineUnavailableError(
                f"after token ids TurboMind goes on with {int(plain.argmax())} and after the same "
                f"tokens as embeddings with {int(injected.argmax())} (logits differ by "
                f"{difference:.2g} standard deviations), so it would answer wrongly about "
                f"pictures: vlcore {__version__} with lmdeploy {lmdeploy_version()} refuses to "
                "serve. Use engine='transformers', and report both versions"
            )


def read_rows(view: Path, name: str, token_ids: Sequence[int]) -> Tensor:
    """Read rows of a text view's token table, and nothing else of it.

    Shapes:
        result: [token ids, hidden_size], in the stored dtype.
    """
    with safe_open(Checkpoint(view).file_of(name), "pt") as file:
        table = file.get_slice(name)
        return cat([table[token_id : token_id + 1] for token_id in token_ids])


def _spread_ids(number: int, vocab_size: int) -> tuple[int, ...]:
    """Token ids from all over the vocabulary, other ones for each number."""
    total = _NUM_PROMPTS * _PROMPT_LENGTH
    return tuple(
        (number + _NUM_PROMPTS * place) * vocab_size // total for place in range(_PROMPT_LENGTH)
    )


async def _next_logits(engine: Engine, request: EngineRequest) -> Tensor:
    """Logits of the token after a prompt, [vocab] float32."""
    async with aclosing(engine.generate(request)) as pieces:
        first = await anext(pieces)
    assert first.logits is not None  # noqa: S101  (for mypy: the request asks for them)
    return first.logits[0]

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
from vlcore.checkpoint import Checkpoint
from vlcore.engines.base import Engine, EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.turbomind_support import lmdeploy_version
from vlcore.errors import EngineUnavailableError
from vlcore.prompt import Prompt, Span

_NUM_PROMPTS = 4
_PROMPT_LENGTH = 16
_COVERED = (3, 14)
"""Begin and end of the positions whose rows are injected."""
_CONFIG = GenerationConfig(max_new_tokens=4, ignore_eos=True)


async def run_self_test(engine: Engine, view: Path, embedding: str) -> None:
    """Continue prompts as token ids, and again with rows of the token table in their middle.

    One request runs at a time, so that both times the same kernels see the same shapes.

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
        plain = await _continue(engine, EngineRequest(Prompt(token_ids), (), _CONFIG))
        prompt = Prompt(token_ids, (Span(begin, end, 0, 0),))
        injected = await _continue(engine, EngineRequest(prompt, (rows,), _CONFIG))
        if plain != injected:
            raise EngineUnavailableError(
                f"TurboMind continues token ids with {plain} and the same tokens as embeddings "
                f"with {injected}, so it would answer wrongly about pictures: vlcore "
                f"{__version__} with lmdeploy {lmdeploy_version()} refuses to serve. Use "
                "engine='transformers', and report both versions"
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


async def _continue(engine: Engine, request: EngineRequest) -> list[int]:
    async with aclosing(engine.generate(request)) as pieces:
        return [token_id async for piece in pieces for token_id in piece.token_ids]

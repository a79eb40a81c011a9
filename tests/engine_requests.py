"""Requests for an engine, and helpers for their results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

import torch
from waits import TIMEOUT_S

from vlcore.engines.base import Engine, EngineOutput, EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.prompts.tokenization import Span, TokenizedPrompt

CPU = torch.device("cpu")
LONG = 400
"""Tokens that a test never waits for: it cancels the request, with the engine held."""
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 2.0, "random_seed": 5}
MIXED_OPTIONS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "random_seed": 1, "top_k": 3},
    {"do_sample": True, "random_seed": 1, "top_p": 0.5, "temperature": 2.0},
    {"do_sample": True, "random_seed": 1, "min_p": 0.5},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.5},
    {"frequency_penalty": 2.0},
    {"presence_penalty": -2.0},
    {"logit_bias": dict.fromkeys(range(300, 320), 50)},
    {"bad_token_ids": list(range(300, 500))},
    {"min_new_tokens": 12, "stop_token_ids": list(range(300, 690))},
    {"bad_words": ["a", "e", "o"]},
    {"logprobs": 2},
    {**SAMPLED, "n": 3},
]
"""Options of requests that share a batch."""


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), TIMEOUT_S))


def request(
    num_tokens: int,
    *,
    seed: int = 0,
    image_rows: int = 0,
    stop: tuple[str, ...] = (),
    **options: Any,
) -> EngineRequest:
    """Create a request with a random prompt, with an image in its middle if requested.

    Unless there are stop strings, the answer has ``max_new_tokens`` tokens.
    """
    draw = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(300, 690, (num_tokens,), generator=draw).tolist()
    config = GenerationConfig(**{"max_new_tokens": 8, "ignore_eos": not stop} | options)
    if not image_rows:
        return EngineRequest(TokenizedPrompt(tuple(token_ids)), (), config, stop)
    half = num_tokens // 2
    rows = torch.randn(image_rows, 64, generator=draw) / 8
    token_ids[half:half] = [0] * image_rows
    spans = (Span(half, half + 1, 0, 0), Span(half + 1, half + image_rows, 0, 1))
    return EngineRequest(TokenizedPrompt(tuple(token_ids), spans), (rows,), config, stop)


async def chunks(engine: Engine, asked: EngineRequest) -> list[EngineOutput]:
    async with aclosing(engine.generate(asked)) as generated:
        return [chunk async for chunk in generated]


async def answer(engine: Engine, asked: EngineRequest) -> tuple[int, ...]:
    return token_ids(await chunks(engine, asked))


def token_ids(outputs: Sequence[EngineOutput]) -> tuple[int, ...]:
    return tuple(token_id for output in outputs for token_id in output.token_ids)


def text(outputs: Sequence[EngineOutput]) -> str:
    return "".join(output.text for output in outputs)


def chunks_of_choice(outputs: Sequence[EngineOutput], choice: int) -> list[EngineOutput]:
    return [output for output in outputs if output.choice == choice]


async def check_own_options(engine: Engine, options: Sequence[dict[str, Any]]) -> None:
    """Check that the answers to one prompt under several options are the same in any company."""
    asked = [request(6, seed=4, **{"max_new_tokens": 12} | one) for one in options]
    alone = [await chunks(engine, one) for one in asked]
    together = await asyncio.gather(*(chunks(engine, one) for one in asked))
    for before, after in zip(alone, together, strict=True):
        for choice in range(3):
            one, other = chunks_of_choice(before, choice), chunks_of_choice(after, choice)
            assert (token_ids(one), text(one)) == (token_ids(other), text(other))
    assert len({token_ids(chunks_of_choice(outputs, 0)) for outputs in alone}) >= 8


def watch_batches(engine: TransformersEngine) -> list[int]:
    """Record how many sequences every forward takes from now on."""
    sizes: list[int] = []

    def record(module: Any, args: Any, options: dict[str, Any]) -> None:
        sizes.append(len(options["position_ids"]))

    engine._model.register_forward_pre_hook(record, with_kwargs=True)
    return sizes

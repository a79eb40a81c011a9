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


def watch_batches(engine: TransformersEngine) -> list[int]:
    """Record how many sequences every forward takes from now on."""
    sizes: list[int] = []

    def record(module: Any, args: Any, options: dict[str, Any]) -> None:
        sizes.append(len(options["position_ids"]))

    engine._model.register_forward_pre_hook(record, with_kwargs=True)
    return sizes

"""Requests that arrive and are cancelled at all times, in each other's company."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from engine_requests import token_ids
from held_engine import held

from vlcore.engines.base import EngineOutput, EngineRequest
from vlcore.engines.transformers.engine import TransformersEngine


@dataclass(frozen=True)
class Arrival:
    """A request, which arrives during another one."""

    request: EngineRequest
    after: tuple[int, int] | None
    """The number of an earlier request, and how many chunks of it come first."""
    num_chunks: int | None
    """After how many chunks it is cancelled."""


def crowd(
    num_requests: int, seed: int, draw_request: Callable[[int, random.Random], EngineRequest]
) -> list[Arrival]:
    """Draw the times at which requests arrive and are cancelled.

    The first six arrive together. When the others do depends on the progress of earlier requests,
    so that there is company on a machine of any speed.
    """
    rng = random.Random(seed)
    arrivals = []
    for number in range(num_requests):
        one = draw_request(number, rng)
        after = (
            (rng.randrange(max(0, number - 8), number), rng.randrange(30)) if number > 5 else None
        )
        arrivals.append(Arrival(one, after, rng.randrange(12) if number % 4 == 3 else None))
    return arrivals


async def keep_company(
    engine: TransformersEngine, arrivals: Sequence[Arrival]
) -> list[tuple[int, ...]]:
    num_got = [0] * len(arrivals)
    progress = asyncio.Condition()

    async def advance(number: int, num_chunks: int) -> None:
        async with progress:
            num_got[number] = num_chunks
            progress.notify_all()

    async def ask(number: int, arrival: Arrival) -> tuple[int, ...]:
        if arrival.after is not None:
            other, num_chunks = arrival.after
            async with progress:
                await progress.wait_for(lambda: num_got[other] >= num_chunks)
        outputs: list[EngineOutput] = []
        async with aclosing(engine.generate(arrival.request)) as generated:
            async for output in generated:
                if len(outputs) == arrival.num_chunks:
                    break
                outputs.append(output)
                await advance(number, len(outputs))
        await advance(number, 1000)  # there is no more of it
        return token_ids(outputs)

    with held(engine):
        tasks = [asyncio.create_task(ask(*one)) for one in enumerate(arrivals)]
        await asyncio.sleep(0)  # those that arrive first have joined the queue
    return await asyncio.gather(*tasks)

"""Reads the answers of an engine of TurboMind."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from vlcore.engines.base import EngineOutput, EngineRequest
from vlcore.engines.turbomind.engine import TurbomindEngine


async def chunks(engine: TurbomindEngine, asked: EngineRequest) -> list[EngineOutput]:
    """Read all chunks of a request's answers."""
    async with aclosing(engine.generate(asked)) as generated:
        return [chunk async for chunk in generated]


def ask(engine: TurbomindEngine, asked: EngineRequest) -> list[EngineOutput]:
    """Read all chunks on an event loop of their own, within a minute."""
    return asyncio.run(asyncio.wait_for(chunks(engine, asked), 60))

"""``gather_ready``: the items of a stream that are there, together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

_T = TypeVar("_T")

_MAX_ITEMS = 256
"""Maximum number of items that are yielded together: a message has a maximum size."""


async def gather_ready(items: AsyncGenerator[_T]) -> AsyncGenerator[tuple[_T, ...]]:
    """Yield all items that have arrived since the last ones were taken.

    A message to another process costs about as much for many tokens as for one. A reader that is
    fast gets each item on its own; one that is slow, or a busy machine, gets several together.
    Closing the result closes ``items``.
    """
    arrived: list[_T] = []
    has_news = asyncio.Event()
    has_ended = False

    async def read() -> None:
        nonlocal has_ended
        try:
            async with aclosing(items):
                async for item in items:
                    arrived.append(item)
                    has_news.set()
        finally:
            has_ended = True
            has_news.set()

    reader = asyncio.create_task(read())
    try:
        while arrived or not has_ended:
            if not arrived:
                await has_news.wait()
            has_news.clear()
            if arrived:
                batch = tuple(arrived[:_MAX_ITEMS])
                del arrived[:_MAX_ITEMS]
                yield batch
        await reader  # raises the error of the stream
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)

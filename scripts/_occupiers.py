"""Clients of the soak that occupy the server: they are slow, or never read, and begin again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_POST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
)
_SLOW_BODY = _POST + b"content-length: 100000\r\n\r\n{"
_SLOW_HEAD = _POST[:-5]
_UNREAD = b"".join(
    f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()
    for path in ("/docs", "/metrics", "/openapi.json", "/")
)
_KINDS = ((64, _SLOW_BODY), (16, _SLOW_HEAD), (8, _UNREAD * 100))
"""How many connections of each kind are kept, and what they send."""


@asynccontextmanager
async def occupying(port: int) -> AsyncIterator[None]:
    """Keep the connections of all kinds."""
    tasks = [
        asyncio.create_task(_occupy(port, sent)) for number, sent in _KINDS for _ in range(number)
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _occupy(port: int, sent: bytes) -> None:
    """Connect again whenever the server has closed the connection."""
    while True:
        try:
            # Little is read ahead where nothing is read.
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        try:
            writer.write(sent)
            while not writer.transport.is_closing():  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        except OSError:
            pass
        finally:
            writer.transport.abort()

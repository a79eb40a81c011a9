"""A vision model whose embeddings hold the grey value of each image, and helpers to test it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import torch
from PIL import Image
from waits import TIMEOUT_S

from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.model import ImageRows, VisionModel

POISON = 99


def image(value: int) -> Image.Image:
    return Image.new("L", (2, 2), value)


class FakeModel(VisionModel):
    """Returns one embedding with the grey value of each image; refuses the poisoned one."""

    hidden_size = 3
    image_options = frozenset({"scale"})

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()

    def preprocess(self, image: Image.Image, **options: Any) -> Any:
        self.threads.add(threading.get_ident())
        value, _, _ = image.getpixel((0, 0))  # type: ignore[misc]
        return value * options.get("scale", 1)

    def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
        self.threads.add(threading.get_ident())
        self.batches.append(list(inputs))
        if POISON in inputs:
            raise RuntimeError("poisoned")
        return [torch.full((1, 3), float(value)) for value in inputs]


class GatedModel(FakeModel):
    """Waits in every forward until the test releases it."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
        self.entered.release()
        assert self.gate.acquire(timeout=TIMEOUT_S)
        return super().forward(inputs)

    async def wait_until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=TIMEOUT_S)


def vlcore_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("vlcore-")}


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), TIMEOUT_S))


def values(rows: Sequence[ImageRows]) -> list[float]:
    return [float(image.rows[0, 0]) for image in rows]


async def waiting(encoder: ImageEncoder, *images: Image.Image) -> asyncio.Task[list[ImageRows]]:
    """Start a request and wait until it is queued."""
    before = len(encoder._queue._jobs)
    task = asyncio.create_task(encoder.encode(images))
    while len(encoder._queue._jobs) == before and not task.done():
        await asyncio.sleep(0.001)
    return task


async def outcome(awaitable: Awaitable[list[ImageRows]]) -> list[float] | Exception:
    try:
        return values(await awaitable)
    except Exception as error:
        return error

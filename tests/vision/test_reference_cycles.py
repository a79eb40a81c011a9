"""A refused image is freed at once: no error refers to itself through its traceback."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from weakref import ref

import pytest
from grey_model import POISON, FakeModel
from PIL import Image
from waits import until

from vlcore._utils.event_loop import LoopThread
from vlcore.errors import VlcoreError
from vlcore.media.image import load_image
from vlcore.media.policy import ImageAccess, ImageLimits
from vlcore.media.source import read_image
from vlcore.vision.encoder import ImageEncoder


class Body(bytes):
    """The bytes of a file, which note when they are freed."""

    num_alive = 0

    def __new__(cls, content: bytes) -> Body:
        Body.num_alive += 1
        return super().__new__(cls, content)

    def __del__(self) -> None:
        Body.num_alive -= 1


@pytest.fixture(scope="module", autouse=True)
def _without_earlier_objects() -> None:
    """Leave what libraries and earlier tests keep out of collections, which would take long."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    Body.num_alive = 0
    yield
    gc.enable()


def fails(use: Callable[[], object]) -> bool:
    """Return whether a call raises an error of vlcore, which is freed."""
    try:
        use()
    except VlcoreError:
        return True
    return False


async def fails_in_loop(use: Coroutine[Any, Any, object]) -> bool:
    """Do the same inside an event loop, because ``asyncio.run`` itself keeps an error."""
    try:
        await use
    except VlcoreError:
        return True
    return False


BODIES = {
    "unknown format": b"no image" * 100,
    "damaged PNG": b"\x89PNG\r\n\x1a\n" + b"x" * 100,
    "damaged JPEG": b"\xff\xd8\xff\xe0" + b"x" * 100,
    "empty": b"",
}


@pytest.mark.parametrize("content", BODIES.values(), ids=list(BODIES))
def test_a_refused_file_is_freed(content: bytes) -> None:
    assert fails(lambda: load_image(Body(content)))
    assert Body.num_alive == 0


@pytest.mark.parametrize("content", BODIES.values(), ids=list(BODIES))
@pytest.mark.parametrize("work", ["encode", "prepare", "load"])
def test_a_refused_file_is_freed_by_the_encoder(content: bytes, work: str) -> None:
    async def body() -> None:
        async with ImageEncoder(FakeModel()) as encoder:
            method = getattr(encoder, work)
            assert await fails_in_loop(method([Body(content), Body(content)]))
            await until(lambda: Body.num_alive == 0)

    asyncio.run(body())


@pytest.mark.parametrize("waits_in_loop", [False, True])
def test_a_refused_file_is_freed_in_a_separate_loop(waits_in_loop: bool) -> None:
    loop = LoopThread("vlcore-test")

    async def encode(body: Body) -> None:
        async with ImageEncoder(FakeModel()) as encoder:
            await encoder.encode([body])

    async def wait() -> None:
        assert await fails_in_loop(loop.wait(encode(Body(b"no image"))))

    try:
        if waits_in_loop:
            asyncio.run(wait())
        else:
            assert fails(lambda: loop.run(encode(Body(b"no image"))))
        loop.run(until(lambda: Body.num_alive == 0))
    finally:
        loop.close()


def test_an_image_that_the_model_refuses_is_freed() -> None:
    async def body() -> None:
        async with ImageEncoder(FakeModel()) as encoder:
            image = Image.new("L", (2, 2), POISON)
            reference = ref(image)
            assert await fails_in_loop(encoder.encode([image]))
            del image
            await until(lambda: reference() is None)

    asyncio.run(body())


@pytest.mark.parametrize(
    "source", ["/etc/hostname", "http://127.0.0.1:9/", "data:image/png;base64,@@", "file://x/y"]
)
def test_what_an_error_of_a_source_refers_to_is_freed(source: str) -> None:
    limits = [ImageLimits()]
    reference = ref(limits[0])
    assert fails(lambda: read_image(source, limits[0], ImageAccess()))
    limits.clear()
    assert reference() is None

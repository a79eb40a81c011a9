"""A remote encoder sends images again where replicas die, and errors as they were raised."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from grey_model import FakeModel
from local_handle import LocalHandle, Replica
from PIL import Image

from vlcore.cluster.encoder_replica import EncoderReplica
from vlcore.cluster.packing import unpack
from vlcore.cluster.remote_encoder import RemoteEncoder, RemoteImage, RemoteRows
from vlcore.errors import ImageError, ImageLimitError, OptionError
from vlcore.media.policy import ImageAccess, ImageLimits
from vlcore.prompts.tokenization import ImageLayout
from vlcore.server.errors import ApiError
from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.model import ImageInputs, ImageRows


def png(value: int, size: int = 2) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


class GreyModel(FakeModel):
    """Reads the grey value of an RGB image."""

    def preprocess(self, image: Image.Image, **options: Any) -> Any:
        return super().preprocess(image.convert("RGB"), **options)


def remote(
    num_replicas: int = 1, limits: ImageLimits | None = None, model: GreyModel | None = None
) -> tuple[RemoteEncoder, list[Replica]]:
    access = ImageAccess(urls=False)
    replicas = [
        Replica(EncoderReplica(ImageEncoder(model or GreyModel(), image_access=access)))
        for _ in range(num_replicas)
    ]
    handle: Any = LocalHandle(replicas)
    facts = replicas[0].served.facts()
    encoder = RemoteEncoder(handle, facts, limits or ImageLimits(), ImageAccess())
    return encoder, replicas


async def close(encoder: RemoteEncoder, replicas: Sequence[Replica]) -> None:
    await encoder.close()
    for replica in replicas:
        await replica.served.close()


async def encode(encoder: RemoteEncoder, *sources: bytes, **options: Any) -> list[float]:
    prepared = await encoder.prepare(sources, [options] * len(sources))
    return values(await encoder.encode_prepared(prepared))


def values(images: Sequence[ImageRows]) -> list[float]:
    rows: list[Any] = [image.rows for image in images]
    assert all(isinstance(one, RemoteRows) for one in rows)
    return [float(unpack(one.ref.value())[0, 0]) for one in rows]


def test_images_are_encoded_in_order_and_a_second_time_from_the_cache() -> None:
    async def body() -> None:
        encoder, (replica,) = remote()
        assert encoder.image_options == {"scale"}
        assert await encode(encoder, png(1), png(2), png(3), scale=2) == [2, 4, 6]
        assert await encode(encoder, png(3), scale=2) == [6]
        assert replica.calls == {"prepare": 4, "encode": 3}
        stats = encoder.stats()
        assert (stats.num_images, stats.num_encoded, stats.num_cache_hits) == (4, 3, 1)
        await close(encoder, [replica])

    asyncio.run(body())


def test_an_image_that_certainly_fits_takes_one_call() -> None:
    class Measured(GreyModel):
        def preprocess(self, image: Image.Image, **options: Any) -> Any:
            return ImageInputs(torch.full((1, 3, 1, 1), 5.0), num_rows=1)

        def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
            return [image.pixels.reshape(1, 3) for image in inputs]

    async def body() -> None:
        encoder, (replica,) = remote(model=Measured())
        for room, calls in ((3, {"prepare": 2}), (1, {"prepare": 4, "encode": 2})):
            prepared = await encoder.prepare([png(room), png(room + 10)], room=room)
            assert [image.layout for image in prepared] == [ImageLayout(1)] * 2
            assert values(await encoder.encode_prepared(prepared)) == [5, 5]
            assert replica.calls == calls
        assert encoder.stats().num_encoded == 4
        await close(encoder, [replica])

    asyncio.run(body())


def test_one_image_has_one_session() -> None:
    async def body() -> None:
        encoder, replicas = remote()
        handle: Any = encoder._handle
        await encode(encoder, png(1))
        await encode(encoder, png(1))
        await encode(encoder, png(2))
        assert len(set(handle.sessions)) == 2
        await close(encoder, replicas)

    asyncio.run(body())


@pytest.mark.parametrize("num_values", [0, 1, 2, 3])
def test_an_image_is_sent_again_when_its_replica_dies(num_values: int) -> None:
    async def body() -> None:
        encoder, replicas = remote(3)
        replicas[0].dies_after = num_values
        assert await encode(encoder, png(7)) == [7]
        await close(encoder, replicas)

    asyncio.run(body())


def test_an_image_on_which_every_replica_dies_is_given_up() -> None:
    async def body() -> None:
        encoder, replicas = remote(6)
        for replica in replicas:
            replica.dies_after = 0
        with pytest.raises(ApiError, match="have died on the image") as caught:
            await encode(encoder, png(7))
        assert caught.value.status == 503
        assert sum(replica.dies_after == 0 for replica in replicas) >= 2  # still alive
        await close(encoder, replicas)

    asyncio.run(body())


def test_bad_input_is_refused_here_or_by_the_error_of_the_replica() -> None:
    async def body() -> None:
        encoder, (replica,) = remote()
        for source in (b"text", png(1)[:30], "file:///etc/passwd", "http://127.0.0.1/x.png"):
            with pytest.raises(ImageError):
                await encoder.prepare([source])
        assert not replica.calls
        with pytest.raises(OptionError, match="unknown image option"):
            await encode(encoder, png(1), colour=1)
        truncated = png(1, 400)[:-300]
        with pytest.raises(ImageError, match=r"image 2 of 2.*damaged or truncated"):
            await encode(encoder, png(1), truncated)
        with pytest.raises(ImageError, match="poisoned"):
            await encode(encoder, png(99))
        assert await encode(encoder, png(5)) == [5]
        await close(encoder, [replica])

    asyncio.run(body())


def test_the_limits_of_a_request_hold_over_all_its_images() -> None:
    async def body() -> None:
        limits = ImageLimits(max_images=3, max_decoded_bytes=2 * 672)
        encoder, (replica,) = remote(limits=limits)
        with pytest.raises(ImageLimitError, match="max_images=3"):
            await encoder.prepare([png(1)] * 4)
        with pytest.raises(ImageLimitError, match="max_decoded_bytes"):
            await encoder.prepare([png(1, 12), png(2, 12), png(3, 12)])
        assert await encode(encoder, png(1, 12), png(2, 12)) == [1, 2]
        await close(encoder, [replica])

    asyncio.run(body())


def test_an_image_that_was_kept_for_too_long_is_sent_again() -> None:
    async def body() -> None:
        encoder, (replica,) = remote()
        prepared: list[RemoteImage] = await encoder.prepare([png(4)])
        replica.served._prepared.clear()
        assert values(await encoder.encode_prepared(prepared)) == [4]
        assert replica.calls == {"prepare": 2, "encode": 1}
        await close(encoder, [replica])

    asyncio.run(body())


def test_images_of_sessions_are_loaded_here_and_sent_as_pixels() -> None:
    async def body() -> None:
        encoder, replicas = remote()
        loaded = await encoder.load([png(8)])
        prepared = await encoder.prepare(loaded)
        assert values(await encoder.encode_prepared(prepared)) == [8]
        await close(encoder, replicas)

    asyncio.run(body())

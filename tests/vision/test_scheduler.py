"""Batches on several devices, and on one that takes a batch ahead."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from grey_model import FakeModel, GatedModel, image, run, values, vlcore_threads, waiting
from waits import TIMEOUT_S, until

from vlcore.errors import EngineClosedError, OptionError
from vlcore.vision.device_runner import DeviceRunner
from vlcore.vision.encoder import ImageEncoder


async def ask_all(encoder: ImageEncoder, numbers: Sequence[int]) -> list[asyncio.Task[Any]]:
    """Queue an image a request, all in one turn of the loop."""
    prepared = [await encoder.prepare([image(number)]) for number in numbers]
    return [asyncio.create_task(encoder.encode_prepared(one)) for one in prepared]


def test_idle_replicas_share_the_waiting_images() -> None:
    async def body() -> None:
        models = [GatedModel(), GatedModel()]
        async with ImageEncoder(models) as encoder:
            tasks = await ask_all(encoder, range(6))
            for model in models:
                await model.wait_until_entered()
                model.gate.release()
            assert [values(rows) for rows in await asyncio.gather(*tasks)] == [
                [n] for n in range(6)
            ]
        assert [model.batches for model in models] == [[[0, 1, 2]], [[3, 4, 5]]]

    run(body)


def test_a_free_replica_gets_the_next_image() -> None:
    async def body() -> None:
        slow, quick = models = [GatedModel(), GatedModel()]
        quick.gate.release(10)
        async with ImageEncoder(models) as encoder:
            (held,) = await ask_all(encoder, [0])
            await slow.wait_until_entered()
            for number in range(1, 4):
                assert values(await encoder.encode([image(number)])) == [number]
            slow.gate.release()
            assert values(await held) == [0]
        assert (slow.batches, quick.batches) == ([[0]], [[1], [2], [3]])

    run(body)


def test_equal_images_are_encoded_on_one_replica() -> None:
    async def body() -> None:
        models = [FakeModel(), FakeModel()]
        async with ImageEncoder(models) as encoder:
            await asyncio.gather(*(encoder.encode([image(n % 4)]) for n in range(32)))
            assert encoder.stats().num_encoded == 4
        numbers = [number for model in models for batch in model.batches for number in batch]
        assert sorted(numbers) == [0, 1, 2, 3]

    run(body)


def test_replicas_must_be_of_one_model() -> None:
    class Other(FakeModel):
        hidden_size = 4

    with pytest.raises(OptionError, match="replicas must be copies of one model"):
        ImageEncoder([FakeModel(), Other()])
    with pytest.raises(OptionError, match="the list of replicas is empty"):
        ImageEncoder([])


@pytest.mark.parametrize(("num_waiting", "num_ahead"), [(3, 0), (4, 4)])
def test_a_busy_device_prepares_only_a_full_batch_in_advance(
    monkeypatch: pytest.MonkeyPatch, num_waiting: int, num_ahead: int
) -> None:
    monkeypatch.setattr(DeviceRunner, "num_concurrent_batches", 2)

    async def body() -> None:
        model = GatedModel()
        async with ImageEncoder(model, max_batch_size=4) as encoder:
            (first,) = await ask_all(encoder, [100])
            await model.wait_until_entered()
            others = await ask_all(encoder, range(num_waiting))
            await until(lambda: encoder.stats().num_waiting == num_waiting - num_ahead)
            if num_ahead:
                await model.wait_until_entered()
            model.gate.release(2)
            assert values(await first) == [100]
            assert [values(rows) for rows in await asyncio.gather(*others)] == [
                [number] for number in range(num_waiting)
            ]
        assert sorted(model.batches) == [list(range(num_waiting)), [100]]

    run(body)


@pytest.fixture
def _without_abandoned_threads() -> Iterator[None]:
    """Wait for the threads that a test abandons, which others would count."""
    before = vlcore_threads()
    yield
    for thread in vlcore_threads() - before:
        thread.join(TIMEOUT_S)


@pytest.mark.usefixtures("_without_abandoned_threads")
def test_closing_abandons_a_forward_pass_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        model = GatedModel()
        encoder = ImageEncoder(model)
        hanging = await waiting(encoder, image(1))
        await model.wait_until_entered()
        with caplog.at_level(logging.ERROR):
            await encoder.close(timeout_s=0.05)
        with pytest.raises(EngineClosedError):
            await hanging
        assert "did not finish 1 batch(es) within 0.05 s" in caplog.text
        model.gate.release()

    run(body)


@pytest.mark.usefixtures("_without_abandoned_threads")
def test_closing_abandons_a_preprocess_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    gate, entered = threading.Event(), threading.Event()

    class Hanging(FakeModel):
        def preprocess(self, image: Any, **options: Any) -> Any:
            entered.set()
            gate.wait(TIMEOUT_S)
            return super().preprocess(image, **options)

    async def body() -> None:
        encoder = ImageEncoder(Hanging())
        hanging = asyncio.create_task(encoder.encode([image(1)]))
        await asyncio.to_thread(entered.wait, TIMEOUT_S)
        with caplog.at_level(logging.ERROR):
            await encoder.close(timeout_s=0.05)
        assert "Hanging.preprocess did not finish within 0.05 s" in caplog.text
        gate.set()
        with pytest.raises(EngineClosedError):
            await hanging

    run(body)

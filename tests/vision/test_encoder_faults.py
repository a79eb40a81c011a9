"""What goes wrong, and that nothing of it stays behind."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from grey_model import (
    POISON,
    FakeModel,
    GatedModel,
    image,
    outcome,
    run,
    values,
    vlcore_threads,
    waiting,
)
from PIL import Image
from waits import TIMEOUT_S, until

from vlcore.errors import EngineClosedError, ImageError, PluginContractError
from vlcore.media import fetcher
from vlcore.vision import preprocessing
from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.model import ImageInputs, VisionModel


@asynccontextmanager
async def clean_encoder(model: VisionModel, **options: Any) -> AsyncIterator[ImageEncoder]:
    """An encoder that must still work afterwards, and leave nothing behind."""
    tasks, threads = asyncio.all_tasks(), vlcore_threads()
    encoder = ImageEncoder(model, **options)
    try:
        yield encoder
        await settled(encoder)
        assert values(await encoder.encode([image(200)])) == [200]
    finally:
        await encoder.close()
    assert_empty(encoder)
    assert asyncio.all_tasks() == tasks
    assert vlcore_threads() <= threads


async def settled(encoder: ImageEncoder) -> None:
    """Wait for batches on the device whose requests were cancelled."""
    while encoder._scheduler._running:
        await asyncio.wait(encoder._scheduler._running)
    assert_empty(encoder)


def assert_empty(encoder: ImageEncoder) -> None:
    assert not encoder._queue._jobs
    assert not encoder._queue._waiting
    assert not encoder._preprocessor._pending._waiting
    assert encoder._preprocessor._pending._num_free == 4 * encoder.max_batch_size


async def all_at_once(encoder: ImageEncoder, numbers: Sequence[int]) -> list[Any]:
    """Ask for one image a request, in one batch as far as it goes."""
    prepared = [(await encoder.prepare([image(number)]))[0] for number in numbers]
    requests = (outcome(encoder.encode_prepared([one])) for one in prepared)
    return list(await asyncio.gather(*requests))


def test_a_poisoned_image_among_31_good_ones() -> None:
    async def body() -> None:
        model = FakeModel()
        async with clean_encoder(model, max_batch_size=32) as encoder:
            numbers = [*range(17), POISON, *range(17, 31)]
            outcomes = await all_at_once(encoder, numbers)
            error = outcomes.pop(17)
            assert isinstance(error, ImageError)
            assert outcomes == [[number] for number in numbers if number != POISON]
            assert len(model.batches) == 11
            stats = encoder.stats()
            assert (stats.num_failures, stats.num_encoded) == (1, 31)
            assert stats.batch_sizes[32] == 1

    run(body)


def test_a_forward_pass_that_fails_every_third_time() -> None:
    class EveryThird(FakeModel):
        def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
            rows = super().forward(inputs)
            if len(self.batches) % 3 == 0 and 200 not in inputs:
                raise RuntimeError("a third call")
            return rows

    async def body() -> None:
        async with clean_encoder(EveryThird(), max_batch_size=4) as encoder:
            outcomes = await all_at_once(encoder, range(40))
            for number, result in enumerate(outcomes):
                assert result == [number] or isinstance(result, ImageError)
            failed = [n for n, result in enumerate(outcomes) if isinstance(result, ImageError)]
            assert len(failed) == encoder.stats().num_failures < 20
            tried_again = failed
            for _ in range(30):  # none of them was cached
                results = await all_at_once(encoder, tried_again)
                pairs = zip(tried_again, results, strict=True)
                tried_again = [n for n, result in pairs if isinstance(result, ImageError)]
            assert tried_again == []

    run(body)


def too_few(rows: list[torch.Tensor]) -> list[torch.Tensor]:
    return rows[:-1]


def nan(rows: list[torch.Tensor]) -> list[torch.Tensor]:
    return [row * (torch.nan if row[0, 0] == 66 else 1) for row in rows]


def too_narrow(rows: list[torch.Tensor]) -> list[torch.Tensor]:
    return [row[:, : 2 if row[0, 0] == 66 else 3] for row in rows]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (too_few, r"it returned 0 result"),
        (nan, "returned NaN or Inf"),
        (too_narrow, r"shape \[k, 3\]; it returned \[1, 2\]"),
    ],
)
def test_errors_of_results_name_the_plugin_and_the_image(broken: Any, message: str) -> None:
    class Broken(FakeModel):
        def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
            rows = super().forward(inputs)
            return broken(rows) if 66 in inputs else rows

    async def body() -> None:
        async with clean_encoder(Broken()) as encoder:
            for _ in range(2):  # it is not cached
                prepared = await encoder.prepare([image(1), image(66)])
                with pytest.raises(
                    PluginContractError, match=rf"^image 2 of 2 \(L, 2 x 2\): Broken.*{message}"
                ):
                    await encoder.encode_prepared(prepared)
            many = await encoder.encode_many([image(1), image(66), image(2)])
            assert [type(one).__name__ for one in many] == [
                "ImageRows",
                "PluginContractError",
                "ImageRows",
            ]

    run(body)


def test_out_of_memory_above_four_images() -> None:
    class Small(FakeModel):
        def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
            rows = super().forward(inputs)
            if len(inputs) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return rows

    async def body() -> None:
        model = Small()
        async with clean_encoder(model, max_batch_size=16) as encoder:
            assert await all_at_once(encoder, range(16)) == [[n] for n in range(16)]
            assert encoder.stats().max_batch_tiles == 4
            model.batches.clear()
            assert await all_at_once(encoder, range(20, 32)) == [[n] for n in range(20, 32)]
            assert [len(batch) for batch in model.batches] == [4, 4, 4]

    run(body)


def test_an_image_that_exhausts_memory_alone_is_reported() -> None:
    class Huge(FakeModel):
        def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
            if POISON in inputs:
                raise MemoryError
            return super().forward(inputs)

    async def body() -> None:
        async with clean_encoder(Huge(), max_batch_size=8) as encoder:
            one, error, two = await all_at_once(encoder, [1, POISON, 2])
            assert (one, two) == ([1], [2])
            assert "Huge ran out of memory on this image alone: shrink it" in str(error)
            assert encoder.stats().max_batch_tiles == 32

    run(body)


def test_a_thousand_requests_of_which_a_third_are_cancelled() -> None:
    async def body() -> None:
        draw = random.Random(0)
        model = FakeModel()
        async with clean_encoder(model) as encoder:
            numbers = [draw.randrange(90) for _ in range(1000)]
            tasks = [asyncio.create_task(encoder.encode([image(n)])) for n in numbers]

            async def cancel(task: asyncio.Task[Any]) -> None:
                for _ in range(draw.randrange(200)):
                    await asyncio.sleep(0)  # a turn of the event loop
                task.cancel()

            cancelled = set(draw.sample(range(1000), 333))
            await asyncio.gather(*(cancel(tasks[index]) for index in cancelled))
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for index, (number, result) in enumerate(zip(numbers, results, strict=True)):
                if isinstance(result, BaseException):
                    assert index in cancelled
                    assert isinstance(result, asyncio.CancelledError)
                else:
                    assert values(result) == [number]

    run(body)


def test_an_image_that_is_no_longer_needed_is_removed_from_the_queue() -> None:
    async def body() -> None:
        model = GatedModel()
        model.gate.release(100)
        async with clean_encoder(model) as encoder:
            while model.gate.acquire(blocking=False):
                pass
            first = await waiting(encoder, image(0))
            await model.wait_until_entered()
            second, third = await waiting(encoder, image(1)), await waiting(encoder, image(2))
            assert encoder.stats().num_waiting == 2
            second.cancel()
            await asyncio.wait([second])
            assert encoder.stats().num_waiting == 1
            assert encoder.stats().num_cancelled == 1
            model.gate.release(9)
            assert [values(await task) for task in (first, third)] == [[0], [2]]
        assert model.batches[:2] == [[0], [2]]

    run(body)


def test_a_batch_that_is_being_computed_is_cached_for_later_requests() -> None:
    async def body() -> None:
        model = GatedModel()
        async with clean_encoder(model) as encoder:
            first = await waiting(encoder, image(0))
            await model.wait_until_entered()
            first.cancel()
            await asyncio.wait([first])
            model.gate.release(9)
            assert values(await encoder.encode([image(0)])) == [0]
        assert model.batches[0] == [0]
        assert [0] not in model.batches[1:]

    run(body)


def test_closing_during_load() -> None:
    async def body() -> None:
        others, threads = asyncio.all_tasks(), vlcore_threads()
        encoder = ImageEncoder(FakeModel())
        tasks = [
            asyncio.create_task(outcome(encoder.encode([image(n % 90), image(n % 7)])))
            for n in range(300)
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await encoder.close()
        outcomes = await asyncio.gather(*tasks)
        for number, result in enumerate(outcomes):
            expected = [number % 90, number % 7]
            assert result == expected or isinstance(result, EngineClosedError)
        assert isinstance(outcomes[-1], EngineClosedError)
        assert_empty(encoder)
        assert vlcore_threads() <= threads
        assert asyncio.all_tasks() == others

    run(body)


def test_fifty_requests_for_an_image_whose_first_attempt_fails() -> None:
    class Once(GatedModel):
        def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
            rows = super().forward(inputs)
            if len(self.batches) == 1:
                raise RuntimeError("the first attempt")
            return rows

    async def body() -> None:
        model = Once()
        async with clean_encoder(model, max_batch_size=16) as encoder:
            requests = [asyncio.create_task(encoder.encode([image(7)])) for _ in range(50)]
            await model.wait_until_entered()
            await until(lambda: encoder.stats().num_cache_hits == 49)
            model.gate.release(9)
            results = [await outcome(request) for request in requests]
            assert all("the first attempt" in str(result) for result in results)
            assert len({id(result) for result in results}) == 50
            assert values(await encoder.encode([image(7)])) == [7]
        assert model.batches[:2] == [[7], [7]]

    run(body)


def test_no_inputs_stay_in_memory() -> None:
    class Kept(FakeModel):
        def preprocess(self, image: Image.Image, **options: Any) -> Any:
            pixels = torch.full((1, 3, 2, 2), float(super().preprocess(image)))
            kept.append(weakref.ref(pixels))
            return ImageInputs(pixels)

        def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
            numbers = [int(item.pixels[0, 0, 0, 0]) for item in inputs]
            return super().forward(numbers)

    kept: list[weakref.ref[torch.Tensor]] = []

    async def body() -> None:
        async with clean_encoder(Kept()) as encoder:
            await encoder.encode_many([image(number) for number in (1, POISON, 2)])
            await outcome(encoder.encode([image(POISON)]))
        gc.collect()
        assert len(kept) == 5
        assert [reference for reference in kept if reference() is not None] == []

    run(body)


# -- who waits for whom


def test_a_request_with_many_images_does_not_delay_others() -> None:
    async def body() -> None:
        model = GatedModel()
        async with clean_encoder(model, max_batch_size=2) as encoder:
            prepared = await encoder.prepare([image(number) for number in range(20)])
            many = asyncio.create_task(encoder.encode_prepared(prepared))
            await model.wait_until_entered()
            few = await waiting(encoder, image(50))
            model.gate.release(40)
            await asyncio.gather(many, few)
        assert [50 in batch for batch in model.batches].index(True) == 1

    run(body)


def test_a_shared_image_is_encoded_in_the_earlier_turn() -> None:
    async def body() -> None:
        model = GatedModel()
        async with clean_encoder(model, max_batch_size=2) as encoder:
            prepared = await encoder.prepare([image(number) for number in range(20)])
            many = asyncio.create_task(encoder.encode_prepared(prepared))
            await model.wait_until_entered()
            few = asyncio.create_task(encoder.encode_prepared(prepared[-1:]))
            await asyncio.sleep(0)
            model.gate.release(40)
            await asyncio.gather(many, few)
        assert [19 in batch for batch in model.batches].index(True) == 1
        assert sum(19 in batch for batch in model.batches) == 1

    run(body)


def test_images_beyond_max_pending_are_not_preprocessed() -> None:
    async def body() -> None:
        preprocessed: list[int] = []

        class Watched(GatedModel):
            def preprocess(self, image: Image.Image, **options: Any) -> Any:
                value = super().preprocess(image, **options)
                preprocessed.append(value)
                return value

        model = Watched()
        async with clean_encoder(model, max_batch_size=2) as encoder:
            many = asyncio.create_task(encoder.encode([image(n) for n in range(50)]))
            await model.wait_until_entered()
            late = asyncio.create_task(encoder.encode([image(60)]))
            await until(
                lambda: (
                    len(encoder._preprocessor._pending._waiting) == 43 and len(preprocessed) == 8
                )
            )
            model.gate.release(100)
            await asyncio.gather(many, late)
            assert preprocessed.index(60) < 20  # it is let in among the first of those that wait

    run(body)


def test_a_failing_image_removes_the_rest_of_its_request_from_the_queue() -> None:
    async def body() -> None:
        model = GatedModel()
        async with clean_encoder(model, max_batch_size=1) as encoder:
            prepared = await encoder.prepare([image(POISON), *map(image, range(10))])
            request = asyncio.create_task(encoder.encode_prepared(prepared))
            await model.wait_until_entered()
            model.gate.release(2)
            assert "poisoned" in str(await outcome(request))
            model.gate.release(2)
        assert len(model.batches) <= 4  # the last is the next request's

    run(body)


def test_nothing_blocks_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage of an image waits for the event loop, and would block forever on it."""

    file = tmp_path / "grey.png"
    image(9).save(file)

    async def body() -> None:
        loop, reached, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Semaphore(0)
        passed: list[str] = []

        def wait_for_the_loop(name: str) -> None:
            loop.call_soon_threadsafe(reached.set)
            assert go_on.acquire(timeout=TIMEOUT_S)
            passed.append(name)

        class Watched(FakeModel):
            def preprocess(self, image: Image.Image, **options: Any) -> Any:
                wait_for_the_loop("preprocess")
                return super().preprocess(image, **options)

        def watched(module: ModuleType, name: str) -> Callable[..., Any]:
            function = getattr(module, name)

            def call(*args: Any, **options: Any) -> Any:
                wait_for_the_loop(name)
                return function(*args, **options)

            return call

        stages = {"read_image": fetcher, "decode_image": preprocessing, "image_key": preprocessing}
        for name, module in stages.items():
            monkeypatch.setattr(module, name, watched(module, name))
        async with ImageEncoder(Watched()) as encoder:
            encoding = asyncio.create_task(encoder.encode([file]))
            for _ in range(4):
                await asyncio.wait_for(reached.wait(), TIMEOUT_S)
                reached.clear()
                go_on.release()
            await encoding
        assert passed == [*stages, "preprocess"]

    run(body)

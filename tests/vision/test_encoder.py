from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Mapping, Sequence
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
from torch import Tensor
from waits import TIMEOUT_S, until

from vlcore.errors import EngineClosedError, ImageError, OptionError, PluginContractError
from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.model import ImageInputs, ImageRows, VisionModel
from vlcore.vision.stats import EncoderStats

# -- batches


def test_embeddings_are_in_the_order_of_the_images() -> None:
    async def body() -> None:
        model = FakeModel()
        async with ImageEncoder(model) as encoder:
            rows = await encoder.encode([image(3), image(1), image(2)])
            assert values(rows) == [3, 1, 2]
            assert rows[0].rows.shape == (1, 3)
            assert await encoder.encode([]) == []
        assert sorted(value for batch in model.batches for value in batch) == [1, 2, 3]

    run(body)


def test_prepared_images_share_a_forward() -> None:
    async def body() -> None:
        model = FakeModel()
        async with ImageEncoder(model) as encoder:
            prepared = await encoder.prepare([image(3), image(1), image(2)])
            assert values(await encoder.encode_prepared(prepared)) == [3, 1, 2]
            assert await encoder.encode_prepared([]) == []
        assert model.batches == [[3, 1, 2]]

    run(body)


def test_images_that_arrive_during_a_forward_pass_share_the_next_one() -> None:
    async def body() -> None:
        model = GatedModel()
        async with ImageEncoder(model) as encoder:
            first = await waiting(encoder, image(0))
            await model.wait_until_entered()
            others = [await waiting(encoder, image(value)) for value in range(1, 9)]
            model.gate.release(2)
            assert values(await first) == [0]
            assert [values(await other) for other in others] == [[v] for v in range(1, 9)]
        assert model.batches == [[0], [1, 2, 3, 4, 5, 6, 7, 8]]
        assert encoder.stats() == EncoderStats(
            num_images=9, num_forwards=2, num_encoded=9, num_tiles=9
        )

    run(body)


def test_max_batch_size_bounds_a_forward() -> None:
    async def body() -> None:
        model = FakeModel()
        async with ImageEncoder(model, max_batch_size=3) as encoder:
            prepared = await encoder.prepare([image(value) for value in range(7)])
            await encoder.encode_prepared(prepared)
        assert model.batches == [[0, 1, 2], [3, 4, 5], [6]]

    run(body)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size must be an integer of at least 1; it is 0"),
        ({"max_batch_size": "8"}, "max_batch_size must be an integer of at least 1; it is '8'"),
        ({"max_batch_size": True}, "max_batch_size must be an integer of at least 1; it is True"),
        ({"max_batch_tiles": 0}, "max_batch_tiles must be an integer of at least 1; it is 0"),
        ({"max_pending": 0}, "max_pending must be an integer of at least 1; it is 0"),
        ({"cache_bytes": -1}, "cache_bytes must be an integer of at least 0; it is -1"),
    ],
)
def test_a_limit_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ImageEncoder(FakeModel(), **options)


def test_the_model_never_runs_on_the_event_loop() -> None:
    async def body() -> None:
        model = FakeModel()
        async with ImageEncoder(model) as encoder:
            await encoder.encode([image(1), image(2)])
        assert model.threads
        assert threading.get_ident() not in model.threads

    run(body)


def test_the_model_runs_in_one_thread() -> None:
    async def body() -> None:
        threads = set()

        class Watched(FakeModel):
            def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
                threads.add(threading.get_ident())
                return super().forward(inputs)

        async with ImageEncoder(Watched(), max_batch_size=1) as encoder:
            await encoder.encode([image(value) for value in range(5)])
        assert len(threads) == 1

    run(body)


def test_layouts_are_returned_with_the_embeddings() -> None:
    class Tiled(VisionModel):
        hidden_size = 3

        def preprocess(self, image: Image.Image, **options: Any) -> ImageInputs:
            return ImageInputs(torch.ones(image.width, 3, 2, 2), layout=image.width, num_rows=4)

        def tower(self, pixels: Tensor) -> Tensor:
            return pixels.flatten(2).transpose(1, 2)

        def assemble(self, features: Tensor, inputs: ImageInputs) -> Tensor:
            return features.flatten(0, 1)

    async def body() -> None:
        async with ImageEncoder(Tiled()) as encoder:
            (prepared,) = await encoder.prepare([image(0)])
            assert prepared.layout is not None
            assert prepared.layout.num_rows == 4
            wide = Image.new("L", (3, 1))
            first, second = await encoder.encode_prepared(
                [prepared, *await encoder.prepare([wide])]
            )
            assert (first.layout, second.layout) == (2, 3)
            assert (len(first.rows), len(second.rows)) == (8, 12)
        assert encoder.stats().num_forwards == 1

    run(body)


# -- the same image again


def test_the_same_image_in_overlapping_requests_is_encoded_once() -> None:
    async def body() -> None:
        model = GatedModel()
        async with ImageEncoder(model) as encoder:
            first = await waiting(encoder, image(1))
            await model.wait_until_entered()
            second = asyncio.create_task(encoder.encode([image(1), image(1)]))
            await until(lambda: encoder.stats().num_cache_hits == 2)
            model.gate.release()
            assert values(await first) == [1]
            assert values(await second) == [1, 1]
        assert model.batches == [[1]]
        assert encoder.stats() == EncoderStats(
            3, num_cache_hits=2, num_forwards=1, num_encoded=1, num_tiles=1
        )

    run(body)


def test_the_same_image_later_comes_from_the_cache() -> None:
    async def body() -> None:
        model = FakeModel()
        async with ImageEncoder(model) as encoder:
            (first,) = await encoder.encode([image(1)])
            (second,) = await encoder.encode([image(1)])
            assert second is first
            assert encoder.stats().num_cache_hits == 1
            await encoder.encode([image(1)], [{"scale": 2}])
        assert model.batches == [[1], [2]]

    run(body)


def test_without_a_cache_it_is_encoded_again() -> None:
    async def body() -> None:
        model = FakeModel()
        async with ImageEncoder(model, cache_bytes=0) as encoder:
            await encoder.encode([image(1)])
            await encoder.encode([image(1)])
        assert model.batches == [[1], [1]]

    run(body)


# -- failures


def test_a_poisoned_image_fails_alone() -> None:
    async def body() -> None:
        model = GatedModel()
        async with ImageEncoder(model) as encoder:
            first = await waiting(encoder, image(0))
            await model.wait_until_entered()
            requests = [await waiting(encoder, image(value)) for value in (1, POISON, 2)]
            model.gate.release(9)
            await first
            one, poisoned, two = [await outcome(request) for request in requests]
            assert (one, two) == ([1], [2])
            assert isinstance(poisoned, ImageError)
            assert str(poisoned) == (
                "image 1 of 1 (L, 2 x 2): GatedModel.forward failed: RuntimeError: poisoned"
            )
            assert isinstance(poisoned.__cause__, RuntimeError)
            assert encoder.stats().num_failures == 1
            assert encoder.stats().num_encoded == 3

    run(body)


def test_a_failed_image_is_encoded_again_and_the_others_are_cached() -> None:
    async def body() -> None:
        model = FakeModel()
        async with ImageEncoder(model) as encoder:
            for _ in range(2):
                prepared = await encoder.prepare([image(1), image(POISON)])
                with pytest.raises(ImageError, match=r"^image 2 of 2 \(L, 2 x 2\): .* poisoned"):
                    await encoder.encode_prepared(prepared)
            assert values(await encoder.encode([image(1)])) == [1]
        assert model.batches == [[1, POISON], [1], [POISON], [POISON]]

    run(body)


def test_requests_that_share_a_failing_image_all_fail() -> None:
    async def body() -> None:
        model = GatedModel()
        async with ImageEncoder(model) as encoder:
            first = await waiting(encoder, image(POISON))
            await model.wait_until_entered()
            second = asyncio.create_task(encoder.encode([image(POISON)]))
            await until(lambda: encoder.stats().num_cache_hits == 1)
            model.gate.release()
            assert isinstance(await outcome(first), ImageError)
            assert isinstance(await outcome(second), ImageError)

    run(body)


def test_a_failing_preprocess_fails_its_request() -> None:
    class Picky(FakeModel):
        def preprocess(self, image: Image.Image, **options: Any) -> Any:
            if image.width != 2:
                raise KeyError("width")
            return super().preprocess(image, **options)

    async def body() -> None:
        model = Picky()
        async with ImageEncoder(model) as encoder:
            bad = outcome(encoder.encode([image(1), Image.new("L", (3, 1))]))
            good = outcome(encoder.encode([image(2)]))
            error, fine = await asyncio.gather(bad, good)
            assert isinstance(error, ImageError)
            assert str(error) == (
                "image 2 of 2 (L, 3 x 1): Picky.preprocess failed: KeyError: 'width'"
            )
            assert fine == [2]
            assert encoder.stats().num_failures == 1

    run(body)


def test_errors_of_vlcore_are_not_changed() -> None:
    refusal = ImageError("too dark")

    class Refuses(FakeModel):
        def preprocess(self, image: Image.Image, **options: Any) -> Any:
            raise refusal

    async def body() -> None:
        async with ImageEncoder(Refuses()) as encoder:
            assert await outcome(encoder.encode([image(1)])) is refusal

    run(body)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ([], r"it returned 0 result"),
        ([torch.zeros(1, 3)] * 2, r"it returned 2 result"),
        ([torch.zeros(1, 4)], r"shape \[k, 3\]; it returned \[1, 4\]"),
        ([torch.zeros(3)], r"it returned \[3\]"),
        ([torch.zeros(1, 1, 3)], r"it returned \[1, 1, 3\]"),
        ([[[0.0, 0.0, 0.0]]], "it returned list"),
        ([None], "it returned NoneType"),
        ([ImageRows(torch.zeros(1, 2))], r"it returned \[1, 2\]"),
        ([torch.full((1, 3), torch.nan)], "NaN or Inf"),
        ([torch.tensor([[0.0, 1.0, torch.inf]])], "NaN or Inf"),
        (None, "returned NoneType"),
        (5, "returned int"),
    ],
)
def test_invalid_results_fail_their_image_only(result: Any, reason: str) -> None:
    class Broken(GatedModel):
        def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
            rows = super().forward([value for value in inputs if value != POISON])
            if inputs == [POISON]:
                return result  # type: ignore[no-any-return]
            if POISON in inputs:
                raise RuntimeError("an image of this batch")
            return rows

    async def body() -> None:
        model = Broken()
        async with ImageEncoder(model) as encoder:
            first = await waiting(encoder, image(0))
            await model.wait_until_entered()
            requests = [await waiting(encoder, image(value)) for value in (1, POISON, 2)]
            model.gate.release(9)
            await first
            one, broken, two = [await outcome(request) for request in requests]
            assert (one, two) == ([1], [2])
            assert isinstance(broken, PluginContractError)
            with pytest.raises(
                PluginContractError, match=rf"^image 1 of 1 \(L, 2 x 2\): Broken.forward .*{reason}"
            ):
                raise broken

    run(body)


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    async def body() -> None:
        async with ImageEncoder(FakeModel()) as encoder:
            with pytest.raises(OptionError, match=r"option\(s\) detail, zoom: .* takes scale"):
                await encoder.prepare([image(1)], [{"zoom": 1, "detail": "low"}])
            (prepared,) = await encoder.prepare([image(2)], [{"scale": 4}])
            assert prepared.inputs == 8

    run(body)


def test_options_belong_to_images() -> None:
    async def body() -> None:
        async with ImageEncoder(FakeModel()) as encoder:
            with pytest.raises(ValueError, match="zip"):
                await encoder.prepare([image(1)], [{}, {}])

    run(body)


def test_a_request_states_its_number_of_images() -> None:
    class Counting(FakeModel):
        def request_options(self, num_images: int) -> Mapping[str, Any]:
            return {"scale": num_images}

    async def body() -> None:
        async with ImageEncoder(Counting()) as encoder:
            assert values(await encoder.encode([image(3), image(5)])) == [6, 10]
            prepared = await encoder.prepare([image(7)] * 3)
            assert [one.inputs for one in prepared] == [21] * 3
            alone = await encoder.encode_many([image(3), image(5)])
            assert values([one for one in alone if isinstance(one, ImageRows)]) == [3, 5]

    run(body)


# -- many images


def test_encode_many_returns_the_errors_of_failing_images() -> None:
    async def body() -> None:
        async with ImageEncoder(FakeModel()) as encoder:
            first, second, third, fourth = await encoder.encode_many(
                [image(1), "nowhere.png", image(POISON), image(2)], [{"scale": 3}, {}, {}, {}]
            )
            assert isinstance(first, ImageRows)
            assert isinstance(fourth, ImageRows)
            assert values([first, fourth]) == [3, 2]
            assert "there is no file 'nowhere.png'" in str(second)
            assert str(third).startswith("image 3 of 4 (L, 2 x 2): FakeModel.forward failed")
            assert await encoder.encode_many([]) == []

    run(body)


def test_a_progress_bar_is_shown_on_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def body() -> None:
        async with ImageEncoder(FakeModel()) as encoder:
            await encoder.encode_many([image(1), image(2)])
            assert capsys.readouterr().err == ""
            await encoder.encode_many([image(1), image(POISON)], progress=True)
            assert "encoding: 100%" in capsys.readouterr().err

    run(body)


# -- cancelling and closing


@pytest.mark.parametrize("on_device", [True, False])
def test_a_cancelled_request_does_not_affect_others(on_device: bool) -> None:
    async def body() -> None:
        model = GatedModel()
        async with ImageEncoder(model) as encoder:
            first = await waiting(encoder, image(0))
            await model.wait_until_entered()
            second = await waiting(encoder, image(1))
            same = asyncio.create_task(encoder.encode([image(0), image(1)]))
            await until(lambda: encoder.stats().num_cache_hits == 2)
            cancelled, other = (first, second) if on_device else (second, first)
            cancelled.cancel()
            model.gate.release(9)
            assert values(await other) == [float(on_device)]
            assert values(await same) == [0, 1]
            with pytest.raises(asyncio.CancelledError):
                await cancelled
        assert model.batches == [[0], [1]]

    run(body)


def test_closing_fails_waiting_images_and_finishes_running_batches() -> None:
    async def body() -> None:
        model = GatedModel()
        encoder = ImageEncoder(model)
        first = await waiting(encoder, image(0))
        await model.wait_until_entered()
        second = await waiting(encoder, image(1))
        closing = asyncio.create_task(encoder.close())
        assert isinstance(await outcome(second), EngineClosedError)
        model.gate.release()
        assert values(await first) == [0]
        await closing
        assert model.batches == [[0]]

    run(body)


def test_closing_fails_images_that_are_not_preprocessed_yet() -> None:
    class Slow(GatedModel):
        def preprocess(self, image: Image.Image, **options: Any) -> Any:
            self.entered.release()
            assert self.gate.acquire(timeout=TIMEOUT_S)
            return super().preprocess(image, **options)

    async def body() -> None:
        model = Slow()
        encoder = ImageEncoder(model)
        requests = [asyncio.create_task(encoder.encode([image(value)])) for value in range(100)]
        await model.wait_until_entered()
        closing = asyncio.create_task(encoder.close())
        await asyncio.sleep(0)
        model.gate.release(100)
        await closing
        outcomes = [await outcome(request) for request in requests]
        assert {type(result) for result in outcomes} == {EngineClosedError}
        assert model.batches == []

    run(body)


def test_a_download_that_hangs_delays_no_other_image() -> None:
    async def body() -> None:
        async with ImageEncoder(FakeModel(), max_pending=1) as encoder:
            with socket.create_server(("127.0.0.1", 0)) as server:
                url = f"http://127.0.0.1:{server.getsockname()[1]}/never.png"
                hanging = asyncio.create_task(encoder.encode([url]))
                connection, _ = await asyncio.to_thread(server.accept)
                with connection:
                    assert values(await encoder.encode([image(7)])) == [7]
                    assert not hanging.done()
                    hanging.cancel()
                    await asyncio.wait([hanging])

    run(body)


def test_a_closed_encoder_refuses_images_and_has_no_threads() -> None:
    async def body() -> None:
        before = vlcore_threads()
        encoder = ImageEncoder(FakeModel())
        prepared = await encoder.prepare([image(1)])
        await encoder.encode_prepared(prepared)
        assert vlcore_threads() - before
        await encoder.close()
        await encoder.close()
        for request in (encoder.encode([image(1)]), encoder.encode_prepared(prepared)):
            with pytest.raises(EngineClosedError, match="image encoder was closed"):
                await request
        with pytest.raises(EngineClosedError):
            await encoder.prepare([image(1)])
        assert vlcore_threads() <= before

    run(body)


def test_counts_of_many_threads_are_complete() -> None:
    class Picky(VisionModel):
        hidden_size = 4

        def preprocess(self, image: Image.Image, **options: Any) -> Any:
            raise ValueError("not this one")

    async def run() -> int:
        async with ImageEncoder(Picky()) as encoder:
            images = [Image.new("L", (1, 1), shade) for shade in range(200)]
            await asyncio.gather(
                *(encoder.encode([image]) for image in images), return_exceptions=True
            )
            return encoder.stats().num_failures

    assert asyncio.run(run()) == 200

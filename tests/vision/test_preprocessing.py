from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grey_model import FakeModel, image, run
from PIL import Image
from waits import TIMEOUT_S, until

from vlcore._utils.fair_queue import current_client
from vlcore.errors import (
    EngineClosedError,
    ImageError,
    ImageLimitError,
    OptionError,
    PluginContractError,
)
from vlcore.media.policy import DecodedBudget, ImageLimits
from vlcore.media.source import ImageSource
from vlcore.prompts.tokenization import ImageLayout
from vlcore.vision.embedding_cache import EmbeddingCache
from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.image_request import ImageRequest, image_label
from vlcore.vision.model import ImageInputs, ImageRows, VisionModel, count_tiles
from vlcore.vision.prepared_image import PreparedImage
from vlcore.vision.preprocessing import ImagePreprocessor
from vlcore.vision.stats import Meter

Prepare = Callable[[ImageSource], Coroutine[Any, Any, PreparedImage]]


class Counting(FakeModel):
    """Counts what it preprocesses."""

    num_preprocessed = 0

    def preprocess(self, image: Image.Image, **options: Any) -> Any:
        self.num_preprocessed += 1
        return super().preprocess(image, **options)


def preparation_of(
    model: VisionModel,
    cache: EmbeddingCache | None = None,
    meter: Meter | None = None,
    max_pending: int = 4,
    **options: Any,
) -> ImagePreprocessor:
    return ImagePreprocessor(
        model,
        cache or EmbeddingCache(1000),
        max_pending=max_pending,
        meter=meter or Meter(),
        **{"limits": ImageLimits(max_pixels=100)} | options,
    )


def request(source: ImageSource, number: int = 1, total: int = 1) -> ImageRequest:
    return ImageRequest(source, {}, image_label(source, number, total), owner=object())


def prepared(
    source: ImageSource,
    model: VisionModel | None = None,
    cache: EmbeddingCache | None = None,
    **options: Any,
) -> PreparedImage:
    async def body() -> PreparedImage:
        preparation = preparation_of(model or FakeModel(), cache, **options)
        try:
            return await preparation.prepare(request(source, 2, 3))
        finally:
            await preparation.close()

    return asyncio.run(body())


def png(value: int, size: tuple[int, int] = (2, 2)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_source_of_an_image_gives_the_same_inputs_and_key(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    path.write_bytes(png(7))
    sources: list[ImageSource] = [image(7), path.read_bytes(), path, str(path), path.as_uri()]
    images = [prepared(source) for source in sources]
    assert [one.inputs for one in images] == [7] * 5
    assert len({one.key for one in images}) == 1
    assert len({one.file for one in images}) == 2  # the PIL image has none


def test_messages_name_the_image(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    path.write_bytes(png(7))
    assert prepared(image(7)).label == "image 2 of 3 (L, 2 x 2)"
    assert prepared(png(7)).label == "image 2 of 3 (2 x 2)"
    assert prepared(path).label == f"image 2 of 3, {str(path)!r} (2 x 2)"


@pytest.mark.parametrize(
    ("source", "expected", "message"),
    [
        (b"", ImageError, "^image 2 of 3 is empty"),
        (b"not image!", ImageError, r"^image 2 of 3 \(10 bytes\) is not an image"),
        (png(1, (20, 20)), ImageLimitError, "^image 2 of 3 is 20 x 20"),
        ("nowhere.png", ImageError, "there is no file 'nowhere.png'"),
    ],
)
def test_an_unreadable_image_is_reported(
    source: Any, expected: type[Exception], message: str
) -> None:
    async def body() -> None:
        meter = Meter()
        preparation = preparation_of(FakeModel(), meter=meter)
        with pytest.raises(expected, match=message):
            await preparation.prepare(request(source, 2, 3))
        assert meter.stats().num_failures == 1
        await preparation.close()

    run(body)


def test_a_file_whose_embeddings_are_cached_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, rows = EmbeddingCache(1000), ImageRows(torch.ones(1, 3), "laid out")
    first = prepared(png(7), cache=cache)
    cache.put(first.key, rows)
    cache.link(first.file, first.key)
    monkeypatch.setattr("vlcore.vision.preprocessing.decode_image", None)
    again = prepared(png(7), cache=cache)
    assert again.rows is rows
    assert again.layout == ImageLayout(1, "laid out")


def test_another_file_with_the_same_pixels_is_decoded_once() -> None:
    model, cache, rows = Counting(), EmbeddingCache(1000), ImageRows(torch.ones(1, 3))
    cache.put(prepared(image(7), model, cache).key, rows)
    padded = png(7) + b"what a reader ignores"
    for _ in range(2):
        assert prepared(padded, model, cache).rows is rows
    assert model.num_preprocessed == 1


def test_equal_images_in_use_are_preprocessed_once() -> None:
    async def body() -> None:
        model = Counting()
        preparation = preparation_of(model)
        first = await preparation.prepare(request(image(7)))
        second = await preparation.prepare(request(png(7), 5, 9))
        assert (second.inputs, second.label) == (7, "image 5 of 9 (2 x 2)")
        assert model.num_preprocessed == 1
        del first
        await preparation.prepare(request(image(7)))
        assert model.num_preprocessed == 2
        await preparation.close()

    run(body)


@pytest.mark.parametrize("pixels", [5, torch.tensor(1.0), torch.empty(1, 3, 2, 2, device="meta")])
def test_pixels_that_are_no_tiles_break_the_contract(pixels: Any) -> None:
    class Odd(FakeModel):
        def preprocess(self, image: Image.Image, **options: Any) -> Any:
            return ImageInputs(pixels)

    with pytest.raises(PluginContractError, match=r"Odd.preprocess must return pixels \[tiles, 3"):
        prepared(image(1), Odd())


def test_tiles_are_the_cost_of_an_image() -> None:
    class Tiled(FakeModel):
        def preprocess(self, image: Image.Image, **options: Any) -> Any:
            return ImageInputs(torch.zeros(5, 3, 2, 2), "grid", num_rows=9)

    tiled = prepared(image(1), Tiled())
    assert (tiled.num_tiles, tiled.layout) == (5, ImageLayout(9, "grid"))
    plain = prepared(image(1))
    assert (plain.num_tiles, plain.layout) == (1, None)


def test_packed_patches_state_their_tiles() -> None:
    class Packed(FakeModel):
        num_tiles: Any = 2

        def preprocess(self, image: Image.Image, **options: Any) -> Any:
            return ImageInputs(torch.zeros(5, 12), num_tiles=self.num_tiles)

    packed = prepared(image(1), Packed())
    assert packed.num_tiles == count_tiles(packed.inputs) == 2
    model = Packed()
    for wrong in (0, 1.5):
        model.num_tiles = wrong
        with pytest.raises(PluginContractError, match=f"num_tiles of at least 1, .* {wrong}"):
            prepared(image(1), model)


def test_options_may_depend_on_the_number_of_images() -> None:
    class Scaling(FakeModel):
        def request_options(self, num_images: int) -> Mapping[str, Any]:
            return {"scale": 10 * num_images}

    async def body() -> None:
        preparation = preparation_of(Scaling())
        alone = await preparation.prepare(request(image(2)))
        one_of_two = await preparation.prepare(replace(request(image(2)), num_images=2))
        own = await preparation.prepare(replace(request(image(2)), options={"scale": 3}))
        assert [one.inputs for one in (alone, one_of_two, own)] == [20, 40, 6]
        assert len({one.key for one in (alone, one_of_two, own)}) == 3
        await preparation.close()

    run(body)


def test_an_error_of_request_options_is_reported() -> None:
    class Broken(FakeModel):
        def request_options(self, num_images: int) -> Mapping[str, Any]:
            raise KeyError("tiles")

    with pytest.raises(PluginContractError, match=r"Broken.request_options failed for 1 image"):
        prepared(image(1), Broken())


def test_images_can_be_loaded_without_encoding() -> None:
    async def body() -> None:
        preparation = preparation_of(FakeModel())
        loaded = await preparation.load([png(3), image(4)], DecodedBudget(ImageLimits()))
        assert [np.asarray(one)[0, 0].tolist() for one in loaded] == [[3, 3, 3], [4, 4, 4]]
        await preparation.close()
        with pytest.raises(EngineClosedError):
            await preparation.load([image(4)], DecodedBudget(ImageLimits()))
        with pytest.raises(EngineClosedError):
            await preparation.prepare(request(image(4)))

    run(body)


# -- shrinking on load


class Whole(VisionModel):
    """Preprocesses nothing, and needs less than it gets."""

    hidden_size = 3

    def needed_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        return size[0] // 8, size[1] // 8


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "JPEG")
    return buffer.getvalue()


def shrunk(source: ImageSource, model: VisionModel, *, shrinks: bool = True) -> PreparedImage:
    return prepared(source, model, shrink_on_load=shrinks, limits=ImageLimits())


def test_files_are_shrunk_on_load_on_request(tmp_path: Path) -> None:
    path = tmp_path / "grey.jpg"
    path.write_bytes(jpeg())
    for source in (jpeg(), path):
        assert shrunk(source, Whole()).inputs.size == (64, 64)
        assert shrunk(source, Whole(), shrinks=False).inputs.size == (256, 256)
    assert shrunk(Image.open(path), Whole()).inputs.size == (256, 256)
    assert shrunk(path, FakeModel()).inputs == prepared(path, limits=ImageLimits()).inputs


def test_a_reduced_image_is_cached_separately() -> None:
    small, whole = (shrunk(jpeg(), Whole(), shrinks=shrinks) for shrinks in (True, False))
    assert small.file != whole.file
    assert small.key != whole.key


def test_an_error_of_needed_size_is_reported() -> None:
    class Failing(Whole):
        def needed_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
            return size[0] // 0, 0

    with pytest.raises(
        ImageError,
        match=r"^Failing\.needed_size failed for an image of 256 x 256 pixels: ZeroDivisionError: ",
    ):
        shrunk(jpeg(), Failing())


# -- transparency


def transparent() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (2, 2), (7, 7, 7, 0)).save(buffer, "PNG")
    return buffer.getvalue()


class OnGrey(FakeModel):
    image_background = "#0b0b0b"


@pytest.mark.parametrize("source", [transparent(), Image.new("RGBA", (2, 2), (7, 7, 7, 0))])
@pytest.mark.parametrize(
    ("model", "chosen", "level"),
    [
        (FakeModel(), None, 7),
        (FakeModel(), "white", 255),
        (OnGrey(), None, 11),
        (OnGrey(), "black", 0),
    ],
)
def test_the_background_is_that_of_the_user_or_the_model(
    source: ImageSource, model: FakeModel, chosen: str | None, level: int
) -> None:
    async def body() -> None:
        async with ImageEncoder(model, image_background=chosen) as encoder:
            (rows,) = await encoder.encode([source])
            assert float(rows.rows[0, 0]) == level
            (loaded,) = await encoder.load([source])
            assert np.asarray(loaded)[0, 0].tolist() == [level, level, level]

    run(body)


def test_a_background_that_is_no_colour_is_refused() -> None:
    with pytest.raises(OptionError, match="a background is a colour"):
        ImageEncoder(FakeModel(), image_background="no colour")


# -- requests and clients


def test_requests_take_turns_in_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of a request with many do not delay those of others by more than one each."""
    monkeypatch.setattr("vlcore.vision.preprocessing.num_cpus", lambda: 1)
    order: list[str] = []
    is_open = threading.Event()

    class Recording(FakeModel):
        def preprocess(self, image: Image.Image, **options: Any) -> Any:
            assert is_open.wait(TIMEOUT_S)
            order.append("many" if image.width > 1 else "one")
            return super().preprocess(image, **options)

    async def body() -> None:
        preprocessor = preparation_of(Recording(), max_pending=100)
        images = [(Image.new("RGB", (2 + width, 1)), "many") for width in range(10)]
        images.append((Image.new("RGB", (1, 1)), "one"))
        tasks = [
            asyncio.create_task(preprocessor.prepare(replace(request(image), owner=owner)))
            for image, owner in images
        ]
        await until(lambda: len(preprocessor._threads._waiting) == 10)
        is_open.set()
        await asyncio.gather(*tasks)
        assert order == ["many", "many", "one", *["many"] * 8]
        await preprocessor.close()

    run(body)


def test_every_request_has_a_download_and_no_client_more_than_its_share_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[str] = []

    async def body() -> None:
        is_over = asyncio.Event()

        async def hang(url: str, *_: Any) -> bytes:
            started.append(url)
            await is_over.wait()
            return png(1)

        monkeypatch.setattr("vlcore.media.fetcher.download", hang)
        preprocessor = preparation_of(FakeModel())

        def send(client: str, name: str, num_images: int) -> list[asyncio.Task[Any]]:
            token = current_client.set(client)
            images = [
                replace(request(f"http://{name}/{number}"), owner=name)
                for number in range(num_images)
            ]
            tasks = [asyncio.create_task(preprocessor.prepare(image)) for image in images]
            current_client.reset(token)
            return tasks

        tasks = send("greedy", "greedy", 200)
        await until(lambda: len(started) == 33)
        tasks += send("greedy", "another", 3) + send("other", "other", 3)
        await until(lambda: len(started) == 37)
        assert sum("another" in url for url in started) == 1
        assert sum("other" in url for url in started) == 4
        is_over.set()
        await asyncio.gather(*tasks)
        assert len(started) == 206
        await preprocessor.close()

    run(body)

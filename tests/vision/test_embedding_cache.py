from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from PIL import Image

from vlcore.vision import embedding_cache
from vlcore.vision.embedding_cache import EmbeddingCache, file_key, image_key
from vlcore.vision.model import ImageRows, VisionModel


def rows(num_rows: int) -> ImageRows:
    """Rows of 16 bytes each."""
    return ImageRows(torch.zeros(num_rows, 4))


def test_cached_embeddings_are_found() -> None:
    cache = EmbeddingCache(1000)
    kept = rows(1)
    cache.put("a", kept)
    assert cache.get("a") is kept
    assert cache.get("b") is None
    assert (len(cache), cache.num_bytes) == (1, 16)


def test_the_least_recently_used_is_evicted_first() -> None:
    cache = EmbeddingCache(48)
    for key in "abc":
        cache.put(key, rows(1))
    assert cache.get("a") is not None
    cache.put("d", rows(1))
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]
    assert cache.num_bytes == 48


def test_the_cache_is_limited_in_bytes() -> None:
    cache = EmbeddingCache(48)
    for key in "abc":
        cache.put(key, rows(1))
    cache.put("d", rows(2))
    assert [key for key in "abcd" if cache.get(key) is not None] == ["c", "d"]
    assert cache.num_bytes == 48


def test_too_large_embeddings_are_not_cached_and_evict_nothing() -> None:
    cache = EmbeddingCache(47)
    cache.put("a", rows(2))
    cache.put("b", rows(3))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.num_bytes == 32


def test_a_limit_of_zero_disables_the_cache() -> None:
    cache = EmbeddingCache(0)
    cache.put("a", rows(1))
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_an_existing_key_is_not_counted_twice() -> None:
    cache = EmbeddingCache(100)
    first = rows(1)
    cache.put("a", first)
    cache.put("a", rows(2))
    assert cache.get("a") is first
    assert cache.num_bytes == 16


def test_embeddings_in_half_precision_take_half_the_memory() -> None:
    cache = EmbeddingCache(100)
    cache.put("a", ImageRows(torch.zeros(2, 4, dtype=torch.float16)))
    assert cache.num_bytes == 16


def test_the_key_of_a_file_is_linked_to_the_embeddings_of_its_pixels() -> None:
    cache = EmbeddingCache(32)
    kept = rows(1)
    cache.link("file", "a")
    assert cache.get("file") is None
    cache.put("a", kept)
    cache.put("b", rows(1))
    assert cache.get("file") is kept
    cache.put("c", rows(1))  # "a" was used last
    assert cache.get("file") is kept
    assert cache.get("b") is None


def test_the_number_of_file_keys_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlcore.vision.embedding_cache._MAX_FILES", 2)
    cache = EmbeddingCache(32)
    cache.put("a", rows(1))
    cache.link("first", "a")
    cache.link("second", "a")
    assert cache.get("first") is not None
    cache.link("third", "a")
    found = [name for name in ("first", "second", "third") if cache.get(name) is not None]
    assert found == ["first", "third"]


# -- keys


class Model(VisionModel):
    hidden_size = 4

    def __init__(
        self, fingerprint: str = "f", dtype: torch.dtype = torch.float32, edge: int = 4
    ) -> None:
        self.fingerprint = fingerprint
        self.weight = torch.zeros(1, dtype=dtype)
        self.edge = edge

    @property
    def preprocess_settings(self) -> Any:
        return self.edge


class OtherModel(Model):
    pass


def grey(*values: int, size: tuple[int, int] | None = None, mode: str = "L") -> Image.Image:
    return Image.frombytes(mode, size or (len(values), 1), bytes(values))


def coloured(*colours: int) -> Image.Image:
    image = grey(0, 1, mode="P")
    image.putpalette(colours)
    return image


IMAGE = grey(1, 2)
MODEL = Model()
KEY = image_key(IMAGE, {"detail": "low"}, MODEL)


def test_the_same_content_gives_the_same_key() -> None:
    assert image_key(grey(1, 2), {"detail": "low"}, Model()) == KEY
    both = image_key(IMAGE, {"a": 1, "b": 2}, MODEL)
    assert image_key(IMAGE, {"b": 2, "a": 1}, MODEL) == both


def test_every_strip_of_an_image_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "_STRIP_PIXELS", 4)
    base = bytes(range(10))
    keys = {image_key(grey(*base, size=(2, 5)), {}, MODEL)}
    for position in range(10):
        changed = [*base[:position], 99, *base[position + 1 :]]
        keys.add(image_key(grey(*changed, size=(2, 5)), {}, MODEL))
    assert len(keys) == 11


def test_metadata_of_a_file_is_not_part_of_the_key() -> None:
    noted = grey(1, 2)
    noted.info["comment"] = "a note"
    assert image_key(noted, {"detail": "low"}, MODEL) == KEY


@pytest.mark.parametrize(
    ("image", "options", "model"),
    [
        (grey(1, 3), {"detail": "low"}, MODEL),
        (grey(1, 2, size=(1, 2)), {"detail": "low"}, MODEL),
        (grey(1, 2, size=(1, 1), mode="LA"), {"detail": "low"}, MODEL),
        (grey(1, 2, mode="P"), {"detail": "low"}, MODEL),
        (IMAGE, {"detail": "high"}, MODEL),
        (IMAGE, {}, MODEL),
        (IMAGE, {"detail": "low", "max_pixels": 1}, MODEL),
        (IMAGE, {"detail": "low"}, Model("g")),
        (IMAGE, {"detail": "low"}, Model(dtype=torch.float16)),
        (IMAGE, {"detail": "low"}, Model(edge=8)),
        (IMAGE, {"detail": "low"}, OtherModel()),
    ],
)
def test_everything_that_embeddings_depend_on_is_part_of_the_key(
    image: Image.Image, options: dict[str, Any], model: VisionModel
) -> None:
    assert image_key(image, options, model) != KEY


def test_the_colours_of_a_palette_are_part_of_the_key() -> None:
    red_and_blue = image_key(coloured(255, 0, 0, 0, 0, 255), {}, MODEL)
    assert image_key(coloured(255, 0, 0, 0, 255, 0), {}, MODEL) != red_and_blue
    assert image_key(coloured(255, 0, 0, 0, 0, 255), {}, MODEL) == red_and_blue


def test_the_transparency_of_a_palette_is_part_of_the_key() -> None:
    opaque, clear = coloured(255, 0, 0, 0, 0, 255), coloured(255, 0, 0, 0, 0, 255)
    clear.info["transparency"] = 1
    assert image_key(opaque, {}, MODEL) != image_key(clear, {}, MODEL)


def test_fields_of_a_key_are_unambiguous() -> None:
    keys = {
        image_key(IMAGE, {"a": "1', 'b': '2"}, MODEL),
        image_key(IMAGE, {"a": "1", "b": "2"}, MODEL),
        image_key(IMAGE, {"a": 1}, MODEL),
        image_key(IMAGE, {"a": "1"}, MODEL),
        image_key(grey(1, 2, 3, 4, size=(2, 2)), {}, MODEL),
        image_key(grey(1, 2, 3, 4, size=(4, 1)), {}, MODEL),
        image_key(grey(1, 2, 3, 4, size=(1, 4)), {}, MODEL),
    }
    assert len(keys) == 7


def test_a_file_shrunk_on_load_has_another_key() -> None:
    whole, shrunk = (file_key(b"", {}, MODEL, shrink_on_load=shrinks) for shrinks in (False, True))
    assert file_key(b"", {}, MODEL) == whole != shrunk


def test_a_file_and_its_pixels_have_different_keys() -> None:
    key = file_key(IMAGE.tobytes(), {}, MODEL)
    assert key == file_key(IMAGE.tobytes(), {}, Model())
    others = {
        image_key(IMAGE, {}, MODEL),
        file_key(IMAGE.tobytes() + b"0", {}, MODEL),
        file_key(IMAGE.tobytes(), {"detail": "low"}, MODEL),
        file_key(IMAGE.tobytes(), {}, Model(edge=8)),
        file_key(IMAGE.tobytes(), {}, Model("g")),
    }
    assert len(others | {key}) == 6


# -- images made to have the key of another one


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_the_same_bytes_in_another_mode_or_shape_have_another_key(mode: str) -> None:
    data = bytes(range(240))
    keys = set()
    for other in ("L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "F", mode):
        width = {"LA": 2, "I;16": 2, "RGB": 3, "L": 1, "P": 1}.get(other, 4)
        if other == "1":
            candidate = Image.frombytes("1", (8, 240), data)
        else:
            candidate = Image.frombytes(other, (240 // width, 1), data)
        keys.add((other, image_key(candidate, {}, MODEL)))
    assert len({key for _, key in keys}) == len(keys)


def test_pixels_cannot_imitate_the_key_of_another_image() -> None:
    """Pixels that imitate the fields of a longer key have another key."""
    whole = image_key(grey(*b"Lpixels(2, 1)", size=(13, 1)), {}, MODEL)
    parts = {
        image_key(grey(*b"pixels(2, 1)", size=(12, 1)), {}, MODEL),
        image_key(grey(*b"Lpixels(2, 1)", size=(1, 13)), {}, MODEL),
        file_key(b"Lpixels(2, 1)", {}, MODEL),
        file_key(b"pixelsLpixels(2, 1)", {}, MODEL),
        file_key(b"file shrunk on load", {}, MODEL),
        file_key(b"", {}, MODEL, shrink_on_load=True),
        file_key(b"", {}, MODEL, background="white"),
    }
    assert len(parts | {whole}) == 8


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"detail": "low"}, {"detail": b"low"}),
        ({"detail": 1}, {"detail": True}),
        ({"detail": 1}, {"detail": 1.0}),
        ({"detail": None}, {"detail": "None"}),
        ({"detail": "a"}, {"detaila": ""}),
        ({"a": {"b": 1}}, {"a": "{'b': 1}"}),
        ({"a": [1, 2]}, {"a": "[1, 2]"}),
        ({"a": "x'), ('b', 'y"}, {"a": "x", "b": "y"}),
        ({"a\n": 1}, {"a": 1}),
    ],
)
def test_options_of_different_types_have_different_keys(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert image_key(IMAGE, one, MODEL) != image_key(IMAGE, other, MODEL)
    assert file_key(b"x", one, MODEL) != file_key(b"x", other, MODEL)


def test_the_transparency_of_pixels_is_part_of_the_key() -> None:
    clear, opaque = (Image.new("RGBA", (2, 2), (9, 9, 9, alpha)) for alpha in (0, 255))
    assert image_key(clear, {}, MODEL) != image_key(opaque, {}, MODEL)


def test_files_with_different_orientations_have_different_keys() -> None:
    keys = set()
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), "red").save(buffer, "JPEG", exif=exif)
        keys.add(file_key(buffer.getvalue(), {}, MODEL))
    assert len(keys) == 4

from __future__ import annotations

import pytest
from PIL import Image, ImageFont

from vlcore.prompts.regions import Region, draw_regions

WHITE = (255, 255, 255)
Box = tuple[int, int, int, int]


def changed(image: Image.Image) -> Box | None:
    """The bounding box of everything that was drawn on a white image."""
    return Image.eval(image, lambda value: 255 - value).getbbox()


def white(width: int = 200, height: int = 100) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


def test_a_box_is_drawn_along_its_edge() -> None:
    drawn = draw_regions(white(), [Region("", (20, 30, 80, 70))])
    assert changed(drawn) == (20, 30, 81, 71)
    assert drawn.getpixel((50, 50)) == WHITE


def test_the_image_itself_is_not_changed() -> None:
    image = white()
    draw_regions(image, [Region("dog", (20, 30, 80, 70))])
    assert changed(image) is None


def test_without_regions_nothing_is_drawn() -> None:
    image = white()
    drawn = draw_regions(image, [])
    assert changed(drawn) is None
    assert drawn is not image


def test_a_label_is_above_its_box_or_inside_at_the_top() -> None:
    below = changed(draw_regions(white(), [Region("dog", (20, 50, 80, 70))]))
    assert below is not None
    assert below[1] < 50
    at_the_top = changed(draw_regions(white(), [Region("dog", (20, 0, 80, 70))]))
    assert at_the_top == (20, 0, 81, 71)


def test_regions_of_one_label_share_a_colour() -> None:
    boxes = [(0, 50, 10, 60), (50, 50, 60, 60), (100, 50, 110, 60)]
    regions = [Region(label, box) for label, box in zip(("a", "b", "a"), boxes, strict=True)]
    drawn = draw_regions(white(), regions)
    first, second, third = (drawn.getpixel((box[0], box[3])) for box in boxes)
    assert first == third != second


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_every_mode_is_drawn_on(mode: str) -> None:
    drawn = draw_regions(white().convert(mode), [Region("", (20, 30, 80, 70))])
    assert drawn.mode == "RGB"
    assert changed(drawn) == (20, 30, 81, 71)


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (5, 5, 5, 9), (0, 0, 200, 100)])
@pytest.mark.parametrize("label", ["", "dog", "图中", "two\nlines"])
def test_every_box_and_label_can_be_drawn(box: Box, label: str) -> None:
    assert changed(draw_regions(white(), [Region(label, box)])) is not None


def test_a_font_may_be_given() -> None:
    regions = [Region("dog", (5, 90, 9, 95))]
    small, large = (
        changed(draw_regions(white(), regions, ImageFont.load_default(size))) for size in (10, 30)
    )
    assert small is not None
    assert large is not None
    assert large[2] > small[2]

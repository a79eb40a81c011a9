"""Regions of a picture that an answer points at, and a drawing of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#f032e6")


@dataclass(frozen=True)
class Region:
    """A rectangle of a picture, and what an answer says stands there."""

    label: str
    """May be empty."""
    box: tuple[int, int, int, int]
    """Left, top, right and bottom, in pixels of the picture."""


def draw_regions(
    image: Image.Image,
    regions: Iterable[Region],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont | None = None,
) -> Image.Image:
    """Draw regions on a copy of a picture; those of one label share a colour.

    Args:
        image: the picture.
        regions: what to draw.
        font: for the labels; ``None`` is Pillow's own, which has Latin letters only.
    """
    drawn = image.convert("RGB")
    drawn = drawn.copy() if drawn is image else drawn
    canvas = ImageDraw.Draw(drawn)
    short_side = min(drawn.size)
    font = font or ImageFont.load_default(max(12, short_side // 32))
    line_width = max(2, short_side // 200)
    colours: dict[str, str] = {}
    for region in regions:
        colour = colours.setdefault(region.label, _COLOURS[len(colours) % len(_COLOURS)])
        canvas.rectangle(region.box, outline=colour, width=line_width)
        if region.label:
            _draw_label(canvas, region, colour, font)
    return drawn


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    region: Region,
    colour: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Write a label above its box, or at the top inside it where there is no room."""
    left, top = region.box[:2]
    _, _, width, height = canvas.textbbox((0, 0), region.label, font)
    place = (left, top - height if top >= height else top)
    canvas.rectangle((*place, place[0] + width, place[1] + height), fill=colour)
    canvas.text(place, region.label, "white", font)

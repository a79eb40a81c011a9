"""Regions of an image that an answer refers to, and how to draw them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#f032e6")


@dataclass(frozen=True)
class Region:
    """A rectangle of an image, with the label that an answer gives to it."""

    label: str
    """May be empty."""
    box: tuple[int, int, int, int]
    """Left, top, right and bottom edge, in pixels of the image."""


def draw_regions(
    image: Image.Image,
    regions: Iterable[Region],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont | None = None,
) -> Image.Image:
    """Draw regions on a copy of an image. Regions with the same label have the same colour.

    Args:
        image: Image to draw on, of any mode.
        regions: Regions to draw.
        font: Font of the labels; ``None`` for Pillow's default font, which has only Latin letters.

    Returns:
        The copy, of mode RGB.
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
    """Draw a label above its box, or inside the box if there is no room above it."""
    left, top = region.box[:2]
    _, _, width, height = canvas.textbbox((0, 0), region.label, font)
    corner = (left, top - height if top >= height else top)
    canvas.rectangle((*corner, corner[0] + width, corner[1] + height), fill=colour)
    canvas.text(corner, region.label, "white", font)

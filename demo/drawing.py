"""Seeded images of one to three flat shapes, in many drawing styles."""

from __future__ import annotations

import colorsys
import io
import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue", "yellow")
SIZES = ("small", "large")

# Extent relative to the short side of the canvas. Between the two classes is a gap; an object
# in the gap is neither, and no question asks for its size.
SMALL = (0.08, 0.24)
LARGE = (0.34, 0.70)

# Hues in degrees, then saturation and value.
_HSV = {
    "red": ((-13.0, 9.0), (0.68, 1.0), (0.45, 1.0)),
    "green": ((88.0, 155.0), (0.50, 1.0), (0.36, 1.0)),
    "blue": ((198.0, 248.0), (0.50, 1.0), (0.42, 1.0)),
    "yellow": ((44.0, 62.0), (0.60, 1.0), (0.76, 1.0)),
}
_NAMED = {
    "red": ("crimson", "darkred", "firebrick", "tomato", "#e53935", "#c0392b", "#d62728", "#b22"),
    "green": (
        "lime",
        "limegreen",
        "forestgreen",
        "darkgreen",
        "seagreen",
        "mediumseagreen",
        "springgreen",
        "lawngreen",
        "lightgreen",
        "#2ca02c",
        "#4caf50",
        "#22b14c",
    ),
    "blue": (
        "navy",
        "darkblue",
        "mediumblue",
        "midnightblue",
        "royalblue",
        "dodgerblue",
        "deepskyblue",
        "skyblue",
        "steelblue",
        "cornflowerblue",
        "#1f77b4",
        "#2196f3",
        "#3f48cc",
    ),
    "yellow": ("gold", "goldenrod", "khaki", "#ffdb58", "#e1ad01", "#ffeb3b", "#fff200", "#f1c40f"),
}
_CANVASES = (
    (400, 300),
    (800, 600),
    (640, 480),
    (640, 200),
    (224, 224),
    (256, 256),
    (300, 300),
    (336, 336),
    (512, 512),
    (600, 400),
    (500, 500),
    (1024, 768),
    (1280, 720),
    (1920, 1080),
    (300, 400),
    (200, 500),
    (720, 1280),
)


@dataclass(frozen=True)
class Thing:
    """One object; positions are fractions of the image padded to a square."""

    shape: str
    colour: str
    size: str | None
    x: float
    y: float


@dataclass(frozen=True)
class DrawnImage:
    """A drawn image and what is in it, listed left to right."""

    image: Image.Image
    things: tuple[Thing, ...]
    outlines: tuple[tuple[tuple[float, float], ...], ...]  # polygons, in canvas pixels


@dataclass(frozen=True)
class _Plan:
    shape: str
    size: str | None
    width: float
    height: float
    corners: tuple[tuple[float, float], ...]  # around (0, 0)
    plain: bool  # drawable by ellipse() or rectangle()


def natural_colour(rng: random.Random, colour: str) -> tuple[int, int, int]:
    """Return a shade that people would call by the given name."""
    choice = rng.random()
    if choice < 0.2:
        name = "#008000" if colour == "green" and rng.random() < 0.6 else colour
        name = "#00ff00" if colour == "green" and rng.random() < 0.4 else name
        return ImageColor.getrgb(name)[:3]
    if choice < 0.45:
        return ImageColor.getrgb(rng.choice(_NAMED[colour]))[:3]
    hue, saturation, value = (rng.uniform(*span) for span in _HSV[colour])
    rgb = colorsys.hsv_to_rgb((hue / 360.0) % 1.0, saturation, value)
    return (round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255))


def _canvas(rng: random.Random) -> tuple[int, int]:
    if rng.random() < 0.35:
        return rng.choice(_CANVASES)
    aspect = math.exp(rng.uniform(-1.0, 1.0) * math.log(3.0) * rng.choice((0.3, 0.6, 1.0)))
    long = math.exp(rng.uniform(math.log(96.0), math.log(1600.0)))
    short = long / max(aspect, 1.0 / aspect)
    if short < 64:
        short, long = 64.0, 64.0 * max(aspect, 1.0 / aspect)
    wide = aspect >= 1.0
    return (round(long), round(short)) if wide else (round(short), round(long))


def _background(rng: random.Random, width: int, height: int) -> Image.Image:
    def tint() -> tuple[int, int, int]:
        rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.17), rng.uniform(0.88, 1.0))
        return (round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255))

    style = rng.random()
    if style < 0.62:
        return Image.new("RGB", (width, height), (255, 255, 255))
    if style < 0.70:
        grey = rng.randint(205, 254)
        return Image.new("RGB", (width, height), (grey, grey, grey))
    if style < 0.90:
        return Image.new("RGB", (width, height), tint())
    corners = Image.new("RGB", (2, 2))
    ends = (tint(), tint())
    across = rng.random() < 0.5
    for x in range(2):
        for y in range(2):
            corners.putpixel((x, y), ends[x if across else y])
    return corners.resize((width, height), Image.Resampling.BILINEAR)


def _turn(corners: list[tuple[float, float]], degrees: float) -> list[tuple[float, float]]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(x * c - y * s, x * s + y * c) for x, y in corners]


def _plan(rng: random.Random, shape: str, size: str | None, extent: float) -> _Plan:
    plain = False
    if shape == "circle":
        stretch = rng.uniform(0.94, 1.06) if rng.random() < 0.15 else 1.0
        a, b = extent / 2 * stretch, extent / 2 / stretch
        corners = [
            (a * math.cos(2 * math.pi * i / 48), b * math.sin(2 * math.pi * i / 48))
            for i in range(48)
        ]
        plain = True
    elif shape == "square":
        stretch = rng.uniform(0.9, 1.1) if rng.random() < 0.2 else 1.0
        a, b = extent / 2 * stretch, extent / 2 / stretch
        corners = [(-a, -b), (a, -b), (a, b), (-a, b)]
        style = rng.random()
        if style < 0.15:
            corners = _turn(corners, rng.uniform(-15, 15))
        elif style < 0.23:
            corners = [(x * 0.85, y * 0.85) for x, y in _turn(corners, 45)]
        elif style < 0.28:
            corners = [(x * 0.85, y * 0.85) for x, y in _turn(corners, rng.uniform(0, 90))]
        else:
            plain = True
    else:
        style = rng.random()
        ratio = math.sqrt(3) / 2 if style < 0.4 else rng.uniform(0.65, 1.45)
        w = extent * 1.1 / math.sqrt(ratio)
        h = w * ratio
        apex = 0.0
        if style >= 0.75:
            apex = rng.choice((-0.5, 0.5))
        elif style >= 0.68:
            apex = rng.uniform(-0.4, 0.4)
        corners = [(-w / 2, h / 2), (w / 2, h / 2), (apex * w, -h / 2)]
        direction = rng.random()
        if direction < 0.55:
            pass
        elif direction < 0.90:
            corners = _turn(corners, rng.choice((90, 180, 270)))
        else:
            corners = _turn(corners, rng.uniform(0, 360))
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    mid_x, mid_y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    centred = tuple((x - mid_x, y - mid_y) for x, y in corners)
    return _Plan(shape, size, max(xs) - min(xs), max(ys) - min(ys), centred, plain)


def _positions(
    rng: random.Random, plans: list[_Plan], width: int, height: int
) -> list[tuple[float, float]] | None:
    gap = rng.choice((0.01, 0.03, 0.06)) * min(width, height)
    row = rng.random()
    line = rng.uniform(0.3, 0.7)
    spots: list[tuple[float, float]] = []
    for plan in plans:
        room_x, room_y = width - plan.width - 2, height - plan.height - 2
        if room_x < 0 or room_y < 0:
            return None
        for _ in range(25):
            x = 1 + plan.width / 2 + rng.random() * room_x
            y = 1 + plan.height / 2 + rng.random() * room_y
            if row < 0.25:  # side by side
                y = 1 + plan.height / 2 + min(max(line + rng.uniform(-0.08, 0.08), 0), 1) * room_y
            elif row < 0.32:  # one above the other
                x = 1 + plan.width / 2 + min(max(line + rng.uniform(-0.15, 0.15), 0), 1) * room_x
            if all(
                abs(x - u) >= (plan.width + other.width) / 2 + gap
                or abs(y - v) >= (plan.height + other.height) / 2 + gap
                for (u, v), other in zip(spots, plans, strict=False)
            ):
                spots.append((x, y))
                break
        else:
            return None
    return spots


def _paint(
    rng: random.Random,
    image: Image.Image,
    plan: _Plan,
    spot: tuple[float, float],
    fill: tuple[int, int, int],
    smooth: bool,
    edge: float,
) -> None:
    extent = max(plan.width, plan.height)
    line = max(1, round(edge * extent)) if edge else 0
    dark = tuple(int(c * 0.55) for c in fill)
    outline = None if not line else rng.choice(((0, 0, 0), (40, 40, 40), dark))
    if not smooth:
        draw = ImageDraw.Draw(image)
        box = (
            spot[0] - plan.width / 2,
            spot[1] - plan.height / 2,
            spot[0] + plan.width / 2,
            spot[1] + plan.height / 2,
        )
        points = [(spot[0] + x, spot[1] + y) for x, y in plan.corners]
        if plan.plain and plan.shape == "circle":
            draw.ellipse(box, fill=fill, outline=outline, width=line)
        elif plan.plain:
            draw.rectangle(box, fill=fill, outline=outline, width=line)
        else:
            draw.polygon(points, fill=fill, outline=outline, width=max(line, 1))
        return
    scale = 4 if extent < 160 else 2
    left, top = math.floor(spot[0] - plan.width / 2) - 2, math.floor(spot[1] - plan.height / 2) - 2
    w, h = math.ceil(plan.width) + 5, math.ceil(plan.height) + 5
    points = [((spot[0] + x - left) * scale, (spot[1] + y - top) * scale) for x, y in plan.corners]
    mask = Image.new("L", (w * scale, h * scale), 0)
    ImageDraw.Draw(mask).polygon(points, fill=255)
    image.paste(fill, (left, top), mask.reduce(scale))
    if line:
        mask = Image.new("L", (w * scale, h * scale), 0)
        ImageDraw.Draw(mask).line(
            [*points, points[0], points[1]], fill=255, width=line * scale, joint="curve"
        )
        image.paste(outline or (0, 0, 0), (left, top), mask.reduce(scale))


def _wear(rng: random.Random, image: Image.Image) -> Image.Image:
    """Add noise and compression artifacts, as images get them on their way."""
    if rng.random() < 0.06 and image.width * image.height < 400_000:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(
            0.0, rng.uniform(1.0, 7.0), (image.height, image.width, 3)
        )
        image = Image.fromarray(
            np.clip(np.asarray(image, dtype=np.float64) + noise, 0, 255).astype(np.uint8)
        )
    if rng.random() < 0.12:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(40, 95))
        image = Image.open(buffer).convert("RGB")
    return image


def draw_image(rng: random.Random) -> DrawnImage:
    """Draw one image; the same generator state gives the same image."""
    width, height = _canvas(rng)
    short, long = min(width, height), max(width, height)
    spots: list[tuple[float, float]] | None = None
    plans: list[_Plan] = []
    colours: list[str] = []
    while spots is None:
        count = rng.choices((1, 2, 3), (0.22, 0.40, 0.38))[0]
        plans, colours = [], []
        for _ in range(count):
            shape, colour = rng.choice(SHAPES), rng.choice(COLOURS)
            if plans and rng.random() < 0.12:
                shape = plans[-1].shape
            if colours and rng.random() < 0.12:
                colour = colours[-1]
            size: str | None = rng.choices((*SIZES, "between"), (0.47, 0.38, 0.15))[0]
            if size == "small":
                # Below about 4 % of the long side no one could name the shape after resizing.
                low = max(SMALL[0], 10.0 / short, 0.042 * long / short)
                extent = rng.uniform(min(low, SMALL[1] - 0.02), SMALL[1])
            elif size == "large":
                extent = LARGE[0] + (LARGE[1] - LARGE[0]) * rng.random() ** 1.7
            else:
                size, extent = None, rng.uniform(SMALL[1], LARGE[0])
            plans.append(_plan(rng, shape, size, extent * short))
            colours.append(colour)
        spots = _positions(rng, plans, width, height)
    image = _background(rng, width, height)
    smooth = rng.random() < 0.5
    edge = rng.uniform(0.008, 0.05) if rng.random() < 0.22 else 0.0
    offset_x, offset_y = (long - width) // 2, (long - height) // 2
    found: list[tuple[Thing, tuple[tuple[float, float], ...]]] = []
    for plan, colour, (x, y) in zip(plans, colours, spots, strict=True):
        _paint(rng, image, plan, (x, y), natural_colour(rng, colour), smooth, edge)
        thing = Thing(plan.shape, colour, plan.size, (x + offset_x) / long, (y + offset_y) / long)
        found.append((thing, tuple((x + u, y + v) for u, v in plan.corners)))
    found.sort(key=lambda pair: pair[0].x)
    return DrawnImage(
        _wear(rng, image), tuple(thing for thing, _ in found), tuple(shape for _, shape in found)
    )


def prepare(image: Image.Image, size: int) -> Image.Image:
    """Pad to a square with the mean colour and resize, as the checkpoint's config asks."""
    image = image.convert("RGB")
    side = max(image.size)
    if image.width != image.height:
        square = Image.new("RGB", (side, side), (122, 116, 104))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    return image.resize((size, size), Image.Resampling.BICUBIC)


def owner_map(drawn: DrawnImage, size: int, patch: int) -> NDArray[np.uint8]:
    """Return the number (from 1) of the object that covers most of each patch, else 0."""
    side = max(drawn.image.size)
    offset_x = (side - drawn.image.width) // 2
    offset_y = (side - drawn.image.height) // 2
    grid = size // patch
    cover = np.zeros((len(drawn.outlines) + 1, grid, grid), dtype=np.int64)
    cover[0] = patch * patch // 50
    for number, outline in enumerate(drawn.outlines, 1):
        mask = Image.new("L", (size, size), 0)
        ImageDraw.Draw(mask).polygon(
            [((x + offset_x) * size / side, (y + offset_y) * size / side) for x, y in outline],
            fill=1,
        )
        cells = np.asarray(mask, dtype=np.int64).reshape(grid, patch, grid, patch)
        cover[number] = cells.sum(axis=(1, 3))
    owner: NDArray[np.uint8] = cover.argmax(axis=0).astype(np.uint8)
    return owner

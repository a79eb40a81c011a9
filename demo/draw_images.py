"""Draw the images in demo/images."""

from __future__ import annotations

import random
from pathlib import Path

from drawing import draw_image
from PIL import Image, ImageDraw

FOLDER = Path(__file__).resolve().parent / "images"


def circle_and_square() -> Image.Image:
    """A red circle to the left of a blue square."""
    image = Image.new("RGB", (400, 300), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((50, 100, 150, 200), fill="red")
    draw.rectangle((250, 110, 330, 190), fill="blue")
    return image


def banner() -> Image.Image:
    """Three shapes side by side on a wide canvas."""
    image = Image.new("RGB", (640, 200), "white")
    draw = ImageDraw.Draw(image)
    draw.polygon([(40, 150), (90, 60), (140, 150)], fill="green")
    draw.ellipse((270, 20, 430, 180), fill="gold")
    draw.rectangle((540, 85, 570, 115), fill="darkred")
    return image


def triangle() -> Image.Image:
    """One yellow triangle on a small canvas."""
    image = Image.new("RGB", (224, 224), "white")
    ImageDraw.Draw(image).polygon([(40, 180), (184, 180), (112, 50)], fill="yellow")
    return image


def tower() -> Image.Image:
    """A navy square above a green circle, on an upright, tinted canvas."""
    image = Image.new("RGB", (300, 600), "aliceblue")
    draw = ImageDraw.Draw(image)
    draw.rectangle((40, 80, 190, 230), fill="navy")
    draw.ellipse((200, 440, 260, 500), fill="limegreen", outline="black", width=2)
    return image


def large() -> Image.Image:
    """Two small shapes on a large canvas."""
    image = Image.new("RGB", (1280, 720), "white")
    draw = ImageDraw.Draw(image)
    draw.polygon([(900, 500), (1040, 500), (900, 360)], fill="crimson")
    draw.ellipse((200, 150, 340, 290), fill="royalblue")
    return image


def main() -> None:
    """Write every image."""
    FOLDER.mkdir(exist_ok=True)
    for draw in (circle_and_square, banner, triangle, tower, large):
        draw().save(FOLDER / f"{draw.__name__}.png", optimize=True)
    for number, seed in enumerate(("images-0", "images-1", "images-2"), 1):
        drawn = draw_image(random.Random(seed))
        drawn.image.save(FOLDER / f"generated_{number}.png", optimize=True)
        print(seed, drawn.image.size, *drawn.things, sep="\n  ")


if __name__ == "__main__":
    main()

"""The demo model answers questions about images drawn here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import vlcore

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "demo" / "tiny-llava"
MAX_BYTES = 8 * 1024**2

Shape = tuple[str, tuple[int, int, int, int], str]


def draw(size: tuple[int, int], *shapes: Shape, background: str = "white") -> Image.Image:
    image = Image.new("RGB", size, background)
    pen = ImageDraw.Draw(image)
    for kind, box, colour in shapes:
        left, top, right, bottom = box
        if kind == "circle":
            pen.ellipse(box, fill=colour)
        elif kind == "square":
            pen.rectangle(box, fill=colour)
        else:
            pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=colour)
    return image


IMAGES = {
    "two": draw(
        (400, 300),
        ("circle", (40, 60, 140, 160), "red"),
        ("square", (250, 150, 340, 240), "blue"),
    ),
    "three": draw(
        (800, 600),
        ("triangle", (500, 300, 700, 480), "green"),
        ("circle", (80, 80, 240, 240), "yellow"),
        ("square", (300, 60, 420, 180), "red"),
    ),
    "one": draw((224, 224), ("square", (60, 60, 160, 160), "#cc2222")),
    "large": draw(
        (1920, 1080),
        ("circle", (1400, 300, 1700, 600), "navy"),
        ("triangle", (200, 500, 500, 800), "gold"),
        background="#f5f5f0",
    ),
    "wide": draw(
        (640, 200),
        ("circle", (20, 50, 120, 150), "green"),
        ("circle", (300, 50, 400, 150), "blue"),
        ("square", (500, 60, 580, 140), "yellow"),
    ),
    "tall": draw(
        (300, 700),
        ("triangle", (100, 50, 200, 150), "blue"),
        ("square", (120, 500, 200, 580), "limegreen"),
    ),
}
QUESTIONS = [
    ("two", "What colour is the circle?", "red"),
    ("two", "What color is the square?", "blue"),
    ("two", "How many objects are there?", "two"),
    ("two", "Is the circle to the left or to the right of the square?", "left"),
    ("two", "Is there a blue triangle?", "no"),
    ("two", "Is there a blue square?", "yes"),
    ("two", "What shape is the red object?", "circle"),
    ("two", "Describe the image.", "a large red circle and a large blue square"),
    ("three", "What colour is the triangle?", "green"),
    ("three", "How many objects are there?", "three"),
    ("three", "Is the triangle to the left or to the right of the circle?", "right"),
    ("three", "What shape is the yellow object?", "circle"),
    ("one", "What colour is the square?", "red"),
    ("one", "How many objects are there?", "one"),
    ("one", "What shape is the red object?", "square"),
    ("large", "What colour is the triangle?", "yellow"),
    ("large", "What colour is the circle?", "blue"),
    ("large", "Is the circle to the left or to the right of the triangle?", "right"),
    ("large", "How many objects are there?", "two"),
    ("wide", "How many objects are there?", "three"),
    ("wide", "What shape is the green object?", "circle"),
    ("tall", "What colour is the triangle?", "blue"),
    ("tall", "What colour is the square?", "green"),
    ("tall", "How many objects are there?", "two"),
    ("tall", "Is there a red circle?", "no"),
]


@pytest.fixture(scope="module")
def pipe() -> Iterator[vlcore.Pipeline]:
    with vlcore.pipeline(MODEL) as loaded:
        yield loaded


@pytest.mark.parametrize(("image", "question", "answer"), QUESTIONS)
def test_an_answer(pipe: vlcore.Pipeline, image: str, question: str, answer: str) -> None:
    assert pipe((question, IMAGES[image])).text == answer


def test_bfloat16_answers_alike() -> None:
    prompts = [(question, IMAGES[image]) for image, question, _ in QUESTIONS]
    with vlcore.pipeline(MODEL, dtype="bfloat16") as pipe:
        answers = [response.raise_for_error().text for response in pipe(prompts)]
    agreeing = [given == answer for given, (_, _, answer) in zip(answers, QUESTIONS, strict=True)]
    assert sum(agreeing) >= len(QUESTIONS) - 1  # rounding may tip one that was close


def test_a_conversation_about_one_image(pipe: vlcore.Pipeline) -> None:
    session = pipe.chat(("What colour is the circle?", IMAGES["two"]))
    assert session.response is not None
    assert session.response.text == "red"
    session = pipe.chat("How many objects are there?", session)
    assert session.response is not None
    assert session.response.text == "two"


def test_the_checkpoint_is_small() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= MAX_BYTES


@pytest.mark.slow
def test_the_demo_prints_images_questions_and_answers() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "demo" / "run.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert "demo/images/circle_and_square.png" in lines
    assert any(
        line.split("?")[0].endswith("What colour is the circle") and line.endswith(" red")
        for line in lines
    )

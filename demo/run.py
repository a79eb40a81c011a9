"""Answers questions about the images in demo/images with the demo model."""

from __future__ import annotations

import json
from pathlib import Path

import vlcore

HERE = Path(__file__).parent


def main() -> None:
    """Print each image's file, then the questions about it and their answers."""
    questions = json.loads((HERE / "images" / "questions.json").read_text("utf-8"))
    with vlcore.pipeline(HERE / "tiny-llava") as pipe:
        for filename, image_questions in questions.items():
            image = HERE / "images" / filename
            answers = pipe([(question, image) for question in image_questions])
            print(image.relative_to(HERE.parent))
            for question, answer in zip(image_questions, answers, strict=True):
                print(f"  {question:<62} {answer.raise_for_error().text}")


if __name__ == "__main__":
    main()

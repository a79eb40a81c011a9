"""Answers questions about the pictures in demo/images with the demo model."""

from __future__ import annotations

import json
from pathlib import Path

import vlcore

HERE = Path(__file__).parent


def main() -> None:
    """Print each picture, and under it question and answer."""
    questions = json.loads((HERE / "images" / "questions.json").read_text("utf-8"))
    with vlcore.pipeline(HERE / "tiny-llava") as pipe:
        for filename, asked in questions.items():
            picture = HERE / "images" / filename
            answers = pipe([(question, picture) for question in asked])
            print(picture.relative_to(HERE.parent))
            for question, answer in zip(asked, answers, strict=True):
                print(f"  {question:<62} {answer.raise_for_error().text}")


if __name__ == "__main__":
    main()

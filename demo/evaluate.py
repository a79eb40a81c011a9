"""Print the share of exact answers per kind of question, on images not used in training."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from pathlib import Path

from drawing import DrawnImage, draw_image
from questions import KINDS, Turn, ask, clearly_ordered

import vlcore

CHUNK = 32  # images asked about in one call
TINY = 0.07  # of the image's longer side: nine pixels of the vision encoder's 128


class Score:
    """Answers counted by kind of question."""

    def __init__(self) -> None:
        self.right: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()

    def add(self, kind: str, correct: bool) -> None:
        """Count one answer."""
        self.asked[kind] += 1
        self.right[kind] += correct

    def columns(self, kind: str) -> str:
        """Format the number of questions and the share of exact answers."""
        asked = self.asked[kind]
        return f" {asked:>10} {self.right[kind] / max(asked, 1):>7.1%}"


def smallest(drawn: DrawnImage) -> float:
    """Return the extent of the smallest object, relative to the image's longer side."""
    extents = []
    for outline in drawn.outlines:
        xs, ys = [x for x, _ in outline], [y for _, y in outline]
        extents.append(max(max(xs) - min(xs), max(ys) - min(ys)))
    return min(extents) / max(drawn.image.size)


def main() -> None:
    """Ask the checkpoint through vlcore's pipeline."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=here / "tiny-llava")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seed", default="evaluation", help="training draws from other seeds")
    parser.add_argument("--show-errors", type=int, default=0, help="how many to print")
    options = parser.parse_args()

    pipe = vlcore.pipeline(str(options.model))
    gen_config = vlcore.GenerationConfig(max_new_tokens=40)
    scores = {"all": Score(), "larger": Score()}
    for start in range(0, options.images, CHUNK):
        questions: list[tuple[Turn, DrawnImage]] = []
        for number in range(start, min(start + CHUNK, options.images)):
            rng = random.Random(f"{options.seed}-{number}")
            drawn = draw_image(rng)
            for kind in KINDS:
                turn = ask(rng, kind, drawn.things)
                # The order of two objects one above the other is not defined.
                if kind == "describe" and not clearly_ordered(drawn.things):
                    continue
                if turn is not None:
                    questions.append((turn, drawn))
        answers = pipe(
            [(turn.question, drawn.image) for turn, drawn in questions], gen_config=gen_config
        )
        for (turn, drawn), answer in zip(questions, answers, strict=True):
            correct = answer.text.strip() == turn.answer
            scores["all"].add(turn.kind, correct)
            if smallest(drawn) >= TINY:
                scores["larger"].add(turn.kind, correct)
            if not correct and options.show_errors > 0:
                options.show_errors -= 1
                print(f"{turn.question}  {answer.text!r} instead of {turn.answer!r}")
    print(f"{'':<10} {'all images':>18} {f'no object < {TINY:.0%}':>18}")
    pipe.close()
    print(f"{'kind':<10}" + f" {'questions':>10} {'exact':>7}" * 2)
    for kind in KINDS:
        print(f"{kind:<10}" + "".join(score.columns(kind) for score in scores.values()))


if __name__ == "__main__":
    main()

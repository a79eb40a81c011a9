"""Print the share of exact answers per kind of question, on pictures nobody trained on."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from pathlib import Path

from pictures import Picture, draw_picture
from questions import KINDS, Turn, ask, clearly_ordered

import vlcore

CHUNK = 32  # pictures asked about in one call
TINY = 0.07  # of the picture's longer side: nine pixels of the tower's 128


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
        """The number of questions and the share of exact answers."""
        asked = self.asked[kind]
        return f" {asked:>10} {self.right[kind] / max(asked, 1):>7.1%}"


def smallest(picture: Picture) -> float:
    """Extent of the smallest object, relative to the picture's longer side."""
    extents = []
    for outline in picture.outlines:
        xs, ys = [x for x, _ in outline], [y for _, y in outline]
        extents.append(max(max(xs) - min(xs), max(ys) - min(ys)))
    return min(extents) / max(picture.image.size)


def main() -> None:
    """Ask the checkpoint through vlcore's pipeline."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=here / "tiny-llava")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--seed", default="evaluation", help="training draws from other seeds")
    parser.add_argument("--show-errors", type=int, default=0, help="how many to print")
    options = parser.parse_args()

    pipe = vlcore.pipeline(str(options.model))
    gen_config = vlcore.GenerationConfig(max_new_tokens=40)
    scores = {"all": Score(), "larger": Score()}
    for start in range(0, options.pictures, CHUNK):
        questions: list[tuple[Turn, Picture]] = []
        for number in range(start, min(start + CHUNK, options.pictures)):
            rng = random.Random(f"{options.seed}-{number}")
            picture = draw_picture(rng)
            for kind in KINDS:
                turn = ask(rng, kind, picture.things)
                # Where two objects stand one above the other, their order is anyone's guess.
                if kind == "describe" and not clearly_ordered(picture.things):
                    continue
                if turn is not None:
                    questions.append((turn, picture))
        answers = pipe(
            [(turn.question, picture.image) for turn, picture in questions], gen_config=gen_config
        )
        for (turn, picture), answer in zip(questions, answers, strict=True):
            correct = answer.text.strip() == turn.answer
            scores["all"].add(turn.kind, correct)
            if smallest(picture) >= TINY:
                scores["larger"].add(turn.kind, correct)
            if not correct and options.show_errors > 0:
                options.show_errors -= 1
                print(f"{turn.question}  {answer.text!r} instead of {turn.answer!r}")
    print(f"{'':<10} {'all pictures':>18} {f'no object < {TINY:.0%}':>18}")
    pipe.close()
    print(f"{'kind':<10}" + f" {'questions':>10} {'exact':>7}" * 2)
    for kind in KINDS:
        print(f"{kind:<10}" + "".join(score.columns(kind) for score in scores.values()))


if __name__ == "__main__":
    main()

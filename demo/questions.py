"""Questions about an image, with their answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from drawing import COLOURS, SHAPES, SIZES, Thing

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
NUMBERS = ("zero", "one", "two", "three")
KINDS = ("colour", "shape", "number", "count", "relation", "exists", "size", "describe")

# Two centres differ clearly when they are this far apart, as a share of the padded square.
CLEAR = 0.05


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    kind: str
    question: str
    answer: str
    # Each named object: where its name ends in the question, and which object it is.
    names: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class _Name:
    """A phrase that denotes exactly one object of the image."""

    words: str
    index: int
    tells: frozenset[str]


def _names(things: Sequence[Thing]) -> list[_Name]:
    names: list[_Name] = []
    for index, thing in enumerate(things):
        others = [other for at, other in enumerate(things) if at != index]
        sized = thing.size is not None and all(other.size is not None for other in others)
        for use in (
            ("shape",),
            ("colour",),
            ("colour", "shape"),
            ("size",),
            ("size", "shape"),
            ("size", "colour"),
            (),
        ):
            if "size" in use and not sized:
                continue
            same = [o for o in others if all(getattr(o, k) == getattr(thing, k) for k in use)]
            if same:
                continue
            words = [getattr(thing, key) for key in ("size", "colour", "shape") if key in use]
            if "shape" not in use:
                words.append("object")
            names.append(_Name(" ".join(words), index, frozenset(use)))
    return names


def _object(rng: random.Random, words: str) -> str:
    """Replace "object" by "shape" or "thing" now and then."""
    if not words.endswith("object"):
        return words
    return words.replace("object", rng.choices(("object", "shape", "thing"), (6, 2, 2))[0])


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeio" else f"a {name}"


def _fill(
    rng: random.Random, kind: str, patterns: Sequence[str], answer: str, *names: _Name
) -> Turn:
    """Fill {0} and {1} of one pattern, and vary its spelling."""
    pattern = patterns[0] if rng.random() < 0.4 else rng.choice(patterns)
    words = [_object(rng, name.words) for name in names]
    question = ""
    marks: list[tuple[int, int]] = []
    for number, part in enumerate(pattern.split("{")):
        if number:
            slot, rest = int(part[0]), part[2:]
            question += words[slot]
            marks.append((len(question), names[slot].index))
            question += rest
        else:
            question += part
    return Turn(kind, vary(rng, question), answer, tuple(marks))


def vary(rng: random.Random, question: str) -> str:
    """Lower-case the first letter or drop the final punctuation, at random."""
    if rng.random() < 0.2:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.2:
        question = question.rstrip("?.")
    return question


def _colour(rng: random.Random, things: Sequence[Thing], names: list[_Name]) -> Turn | None:
    usable = [n for n in names if "colour" not in n.tells]
    if not usable:
        return None
    name = rng.choice(usable)
    c = rng.choice(("colour", "color"))
    patterns = (
        f"What {c} is the {{0}}?",
        f"What is the {c} of the {{0}}?",
        f"Which {c} is the {{0}}?",
        f"Which {c} does the {{0}} have?",
    )
    return _fill(rng, "colour", patterns, things[name.index].colour, name)


def _shape(rng: random.Random, things: Sequence[Thing], names: list[_Name]) -> Turn | None:
    usable = [n for n in names if "shape" not in n.tells]
    if not usable:
        return None
    name = rng.choice(usable)
    patterns = [
        "What shape is the {0}?",
        "What is the shape of the {0}?",
        "Which shape is the {0}?",
        "Which shape does the {0} have?",
        "What is the {0}?",
    ]
    turn = _fill(rng, "shape", patterns, things[name.index].shape, name)
    if name.tells == {"colour"} and rng.random() < 0.1:
        word = things[name.index].colour
        question = rng.choice((f"Which shape is {word}", f"What shape is {word}"))
        mark = ((len(question), name.index),)
        return Turn("shape", vary(rng, question + "?"), things[name.index].shape, mark)
    return turn


def _matches(thing: Thing, colour: str | None, shape: str | None) -> bool:
    return (colour is None or thing.colour == colour) and (shape is None or thing.shape == shape)


def _attributes(rng: random.Random, things: Sequence[Thing]) -> tuple[str | None, str | None]:
    """Choose a colour, a shape or both, often almost those of an object in the image."""
    thing = rng.choice(things)
    other = rng.choice(things)
    use = rng.random()
    colour: str | None = thing.colour
    shape: str | None = other.shape if rng.random() < 0.3 else thing.shape
    if rng.random() < 0.4:
        if rng.random() < 0.5:
            colour = rng.choice(COLOURS)
        else:
            shape = rng.choice(SHAPES)
    if use < 0.3:
        shape = None
    elif use < 0.6:
        colour = None
    return colour, shape


def _phrase(rng: random.Random, colour: str | None, shape: str | None, plural: bool) -> str:
    noun = shape or rng.choices(("object", "shape", "thing"), (6, 2, 2))[0]
    return " ".join([*([colour] if colour else []), noun + ("s" if plural else "")])


def _how_many(rng: random.Random, kind: str, phrase: str, count: int) -> Turn:
    noun = rng.choice(("picture", "image"))
    patterns = (
        f"How many {phrase} are there?",
        f"How many {phrase} are in the {noun}?",
        f"How many {phrase} are there in the {noun}?",
        f"How many {phrase} do you see?",
        f"How many {phrase} can you see?",
    )
    return _fill(rng, kind, patterns, NUMBERS[count])


def _number(rng: random.Random, things: Sequence[Thing], names: list[_Name]) -> Turn | None:
    del names
    return _how_many(rng, "number", _phrase(rng, None, None, plural=True), len(things))


def _count(rng: random.Random, things: Sequence[Thing], names: list[_Name]) -> Turn | None:
    del names
    colour, shape = _attributes(rng, things)
    count = sum(_matches(thing, colour, shape) for thing in things)
    return _how_many(rng, "count", _phrase(rng, colour, shape, plural=True), count)


def _exists(rng: random.Random, things: Sequence[Thing], names: list[_Name]) -> Turn | None:
    del names
    wanted = rng.random() < 0.5
    colour, shape = _attributes(rng, things)
    for _ in range(6):
        if any(_matches(thing, colour, shape) for thing in things) == wanted:
            break
        colour, shape = _attributes(rng, things)
    answer = "yes" if any(_matches(thing, colour, shape) for thing in things) else "no"
    one = _article(_phrase(rng, colour, shape, plural=False))
    many = _phrase(rng, colour, shape, plural=True)
    noun = rng.choice(("picture", "image"))
    patterns = [
        f"Is there {one}?",
        f"Is there {one} in the {noun}?",
        f"Are there any {many}?",
        f"Can you see {one}?",
        f"Do you see {one}?",
    ]
    if colour and not shape:
        patterns.append(f"Is there anything {colour}?")
    return _fill(rng, "exists", patterns, answer)


def _relation(rng: random.Random, things: Sequence[Thing], names: list[_Name]) -> Turn | None:
    upright = rng.random() < 0.15
    along = [thing.y if upright else thing.x for thing in things]
    pairs = [
        (one, other)
        for one in names
        for other in names
        if one.index != other.index and abs(along[one.index] - along[other.index]) >= CLEAR
    ]
    if not pairs:
        return None
    short = [pair for pair in pairs if all(name.tells == {"shape"} for name in pair)]
    full = [pair for pair in pairs if all(name.tells == {"colour", "shape"} for name in pair)]
    choice = rng.random()
    if short and choice < 0.4:
        pairs = short
    elif full and choice < 0.7:
        pairs = full
    first, second = rng.choice(pairs)
    a, b = things[first.index], things[second.index]
    if upright:
        patterns = ["Is the {0} above or below the {1}?"]
        answer = "above" if a.y < b.y else "below"
        if rng.random() < 0.3:
            word = rng.choice(("above", "below"))
            patterns, answer = [f"Is the {{0}} {word} the {{1}}?"], _yes(word == answer)
        return _fill(rng, "relation", patterns, answer, first, second)
    answer = "left" if a.x < b.x else "right"
    patterns = [
        "Is the {0} to the left or to the right of the {1}?",
        "Is the {0} to the left or right of the {1}?",
        "Is the {0} on the left or on the right of the {1}?",
        "Is the {0} left or right of the {1}?",
    ]
    if rng.random() < 0.2:
        word = rng.choice(("left", "right"))
        patterns = [
            f"Is the {{0}} to the {word} of the {{1}}?",
            f"Is the {{0}} {word} of the {{1}}?",
        ]
        answer = _yes(word == answer)
    return _fill(rng, "relation", patterns, answer, first, second)


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _size(rng: random.Random, things: Sequence[Thing], names: list[_Name]) -> Turn | None:
    usable = [n for n in names if "size" not in n.tells and things[n.index].size is not None]
    if not usable:
        return None
    name = rng.choice(usable)
    size = things[name.index].size
    assert size is not None
    patterns = ["Is the {0} large or small?", "Is the {0} small or large?"]
    if rng.random() < 0.2:
        word = rng.choice(SIZES)
        return _fill(rng, "size", [f"Is the {{0}} {word}?"], _yes(word == size), name)
    return _fill(rng, "size", patterns, size, name)


def description(things: Sequence[Thing]) -> str:
    """List all objects from left to right."""
    parts = [f"a {thing.size} {thing.colour} {thing.shape}" for thing in things]
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _describe(rng: random.Random, things: Sequence[Thing], names: list[_Name]) -> Turn | None:
    del names
    if any(thing.size is None for thing in things):
        return None
    patterns = (
        "Describe the picture.",
        "Describe the image.",
        "Describe this picture.",
        "Describe this image.",
        "What do you see?",
        "What can you see?",
        "What is in the picture?",
        "What is in the image?",
    )
    return _fill(rng, "describe", patterns, description(things))


_ASK = {
    "colour": _colour,
    "shape": _shape,
    "number": _number,
    "count": _count,
    "relation": _relation,
    "exists": _exists,
    "size": _size,
    "describe": _describe,
}


def ask(rng: random.Random, kind: str, things: Sequence[Thing]) -> Turn | None:
    """Ask a question of a kind; None if every such question about the image is ambiguous."""
    return _ASK[kind](rng, things, _names(things))


def clearly_ordered(things: Sequence[Thing]) -> bool:
    """Return whether the order from left to right is unambiguous."""
    xs = sorted(thing.x for thing in things)
    return all(b - a >= CLEAR for a, b in pairwise(xs))


def all_words() -> list[str]:
    """Return texts that contain every word of the questions and answers, for the tokenizer."""
    rng = random.Random(0)
    texts = [SYSTEM + " USER:"]
    for _ in range(4000):
        things = [
            Thing(rng.choice(SHAPES), rng.choice(COLOURS), rng.choice(SIZES), x, rng.random())
            for x in sorted(rng.random() for _ in range(rng.randint(1, 3)))
        ]
        turn = ask(rng, rng.choice(KINDS), things)
        if turn is not None:
            texts.append(f"{turn.question} ASSISTANT: {turn.answer}")
    return texts

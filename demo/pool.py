"""A pool of drawn images, rendered once, and training batches from it."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from drawing import COLOURS, SHAPES, SIZES, Thing, draw_image, owner_map, prepare
from numpy.typing import NDArray
from questions import KINDS, Turn, ask
from torch import Tensor
from words import EOS, Words

MAX_THINGS = 3
# How often each kind is asked; relations and counts are the hardest to learn.
SHARES = {
    "colour": 1.0,
    "shape": 1.0,
    "number": 0.6,
    "count": 1.5,
    "relation": 2.0,
    "exists": 1.0,
    "size": 0.5,
    "describe": 1.2,
}


@dataclass(frozen=True)
class Drawn:
    """Prepared pixels, the object under every patch, and the objects from left to right."""

    pixels: NDArray[np.uint8]  # [S, S, 3]
    owner: NDArray[np.uint8]  # [G, G]
    things: tuple[Thing, ...]


def _draw(job: tuple[str, int, int]) -> Drawn:
    seed, size, patch = job
    drawn = draw_image(random.Random(seed))
    owner = owner_map(drawn, size, patch)
    return Drawn(np.asarray(prepare(drawn.image, size)), owner, drawn.things)


class Pool:
    """Images kept as arrays."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self.pixels: NDArray[np.uint8] = arrays["pixels"]
            self.owner: NDArray[np.uint8] = arrays["owner"]
            self.things: NDArray[np.float32] = arrays["things"]

    def __len__(self) -> int:
        return len(self.pixels)

    @staticmethod
    def render(path: Path, seed: str, count: int, size: int, patch: int, workers: int) -> None:
        """Draw the images in several processes and write them to one file."""
        pixels = np.zeros((count, size, size, 3), np.uint8)
        owner = np.zeros((count, size // patch, size // patch), np.uint8)
        # Shape, colour, size (2: in the gap), x, y; shape -1 where there is no object.
        things = np.full((count, MAX_THINGS, 5), -1.0, np.float32)
        jobs = ((f"{seed}-{number}", size, patch) for number in range(count))
        with multiprocessing.get_context("spawn").Pool(workers) as processes:
            for number, drawn in enumerate(processes.imap(_draw, jobs, chunksize=64)):
                pixels[number], owner[number] = drawn.pixels, drawn.owner
                for index, thing in enumerate(drawn.things):
                    things[number, index] = (
                        SHAPES.index(thing.shape),
                        COLOURS.index(thing.colour),
                        2 if thing.size is None else SIZES.index(thing.size),
                        thing.x,
                        thing.y,
                    )
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, pixels=pixels, owner=owner, things=things)
        path.with_suffix(".part").rename(path)

    def get(self, number: int, symmetry: int = 0) -> Drawn:
        """Return one image, mirrored or transposed in one of eight ways."""
        pixels, owner = self.pixels[number], self.owner[number]
        rows = self.things[number]
        rows = rows[rows[:, 0] >= 0]
        x, y = rows[:, 3], rows[:, 4]
        if symmetry & 1:
            pixels, owner, x = pixels[:, ::-1], owner[:, ::-1], 1 - x
        if symmetry & 2:
            pixels, owner, y = pixels[::-1], owner[::-1], 1 - y
        if symmetry & 4:
            pixels, owner, x, y = pixels.transpose(1, 0, 2), owner.T, y, x
        order = np.argsort(x, kind="stable")
        renumber = np.zeros(len(rows) + 1, np.uint8)
        renumber[order + 1] = np.arange(1, len(rows) + 1)
        things = tuple(
            Thing(
                SHAPES[int(rows[i, 0])],
                COLOURS[int(rows[i, 1])],
                None if rows[i, 2] == 2 else SIZES[int(rows[i, 2])],
                float(x[i]),
                float(y[i]),
            )
            for i in order
        )
        return Drawn(pixels, renumber[owner], things)


@dataclass(frozen=True)
class PatchTargets:
    """Training targets of each patch: the object on it. Shape: [B, G * G]."""

    shape: Tensor  # 0: no object
    colour: Tensor
    size: Tensor  # -100 in the gap
    rank: Tensor  # 1: leftmost
    count: Tensor  # of objects in the image, from 0
    same_colour: Tensor  # how many more objects have its colour
    same_shape: Tensor
    centre: Tensor  # [B, G * G, 2]
    weight: Tensor  # every object weighs the same, however many patches it has


def patch_targets(batch: Sequence[Drawn]) -> PatchTargets:
    """Return the targets of a batch."""
    columns = np.zeros((len(batch), MAX_THINGS + 1, 9), np.float32)
    owners = np.stack([drawn.owner.reshape(-1) for drawn in batch]).astype(np.int64)
    for at, drawn in enumerate(batch):
        columns[at, :, 4] = len(drawn.things) - 1
        for index, thing in enumerate(drawn.things, 1):
            columns[at, index] = (
                1 + SHAPES.index(thing.shape),
                1 + COLOURS.index(thing.colour),
                -100 if thing.size is None else 1 + SIZES.index(thing.size),
                index,
                len(drawn.things) - 1,
                sum(other.colour == thing.colour for other in drawn.things) - 1,
                sum(other.shape == thing.shape for other in drawn.things) - 1,
                thing.x,
                thing.y,
            )
    spread = torch.from_numpy(np.take_along_axis(columns, owners[:, :, None], axis=1))
    counts = (owners[:, :, None] == owners[:, None, :]).sum(axis=2)
    whole = spread[..., :7].long()
    return PatchTargets(
        whole[..., 0],
        whole[..., 1],
        whole[..., 2],
        whole[..., 3],
        whole[..., 4],
        whole[..., 5],
        whole[..., 6],
        spread[..., 7:],
        torch.from_numpy(1.0 / counts).float(),
    )


@dataclass(frozen=True)
class Conversations:
    """Several conversations for every image of a batch. Shape: [B, T]."""

    tokens: Tensor
    branch: Tensor  # -2: padding
    position: Tensor  # in its conversation
    target: Tensor
    weight: Tensor  # 0 where nothing is to be learned
    named: Tensor  # whether an object's name ends here
    point: Tensor  # [B, T, 2]: where that object is


class _Row:
    def __init__(self, length: int) -> None:
        self.whole = np.zeros((4, length), np.int64)
        self.whole[1] = -2
        self.parts = np.zeros((4, length), np.float32)
        self.used = 0
        self.num_branches = 0

    def add(self, words: Words, things: Sequence[Thing], turns: Sequence[Turn]) -> bool:
        """Append one conversation if there is room."""
        tokens: list[int] = []
        weights: list[float] = []
        names: list[tuple[int, int]] = []
        for number, turn in enumerate(turns):
            if number:
                tokens += words.encode("USER:")
            start = len(tokens)
            question = words.phrase(turn.question, line=not number)
            for end, index in turn.names:
                offset = next(i for i, (_, word_end) in enumerate(question) if word_end >= end)
                names.append((start + offset + (2 if offset == 0 and not number else 0), index))
            tokens += [token for token, _ in question] + words.encode("ASSISTANT:")
            answer = [token for token, _ in words.phrase(turn.answer, line=False)] + [EOS]
            weights += [0.0] * (len(tokens) - len(weights)) + [min(1.0, 4 / len(answer))] * len(
                answer
            )
            tokens += answer
        size, start = len(tokens), self.used
        if start + size > self.whole.shape[1]:
            return False
        here = slice(start, start + size)
        self.whole[0, here] = tokens
        self.whole[1, here] = self.num_branches
        self.whole[2, here] = np.arange(size)
        self.whole[3, start : start + size - 1] = tokens[1:]
        self.parts[0, start : start + size - 1] = weights[1:]
        for offset, index in names:
            self.parts[1:, start + offset] = (1.0, things[index].x, things[index].y)
        self.used += size
        self.num_branches += 1
        return True


def _stack(rows: Sequence[_Row]) -> Conversations:
    whole = torch.from_numpy(np.stack([row.whole for row in rows], axis=1))
    parts = torch.from_numpy(np.stack([row.parts for row in rows], axis=1))
    return Conversations(
        whole[0],
        whole[1],
        whole[2],
        whole[3],
        parts[0],
        parts[1] > 0,
        torch.stack([parts[2], parts[3]], dim=-1),
    )


def conversations(
    rng: random.Random, words: Words, batch: Sequence[Drawn], length: int
) -> Conversations:
    """Fill `length` tokens for every image with conversations of one to four turns."""
    kinds, shares = list(SHARES), list(SHARES.values())
    rows = []
    for drawn in batch:
        row = _Row(length)
        for _ in range(14):
            count = rng.choices((1, 2, 3, 4), (0.72, 0.12, 0.1, 0.06))[0]
            asked = [ask(rng, kind, drawn.things) for kind in rng.choices(kinds, shares, k=count)]
            turns = [turn for turn in asked if turn is not None]
            if turns:
                row.add(words, drawn.things, turns)
        rows.append(row)
    return _stack(rows)


def single_questions(
    rng: random.Random, words: Words, batch: Sequence[Drawn], length: int
) -> tuple[Conversations, list[list[Turn]]]:
    """Ask one question of every kind about each image, each in a separate conversation."""
    rows, asked = [], []
    for drawn in batch:
        row, turns = _Row(length), []
        for kind in KINDS:
            turn = ask(rng, kind, drawn.things)
            if turn is not None and row.add(words, drawn.things, [turn]):
                turns.append(turn)
        rows.append(row)
        asked.append(turns)
    return _stack(rows), asked

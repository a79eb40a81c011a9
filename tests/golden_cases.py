"""Golden cases: checkpoints with recorded values of the reference implementations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
IMAGE_TOKEN_ID = -200
"""The id of the position of an image, in the cases of the original layout."""


@dataclass(frozen=True)
class GoldenCase:
    """One directory of golden data."""

    name: str
    facts: Mapping[str, Any]
    expected: Mapping[str, np.ndarray[Any, Any]]

    @property
    def directory(self) -> Path:
        return GOLDEN / self.name

    @property
    def tolerance(self) -> dict[str, Any]:
        return dict(self.facts["suggested_tol"])

    def images(self) -> list[Image.Image]:
        images = []
        for path in self.facts["images"]:
            with Image.open(self.directory / path) as image:
                images.append(image.copy())
        return images

    @property
    def prompts(self) -> list[str]:
        return [key.removesuffix("_ids") for key in self.expected if key.endswith("_ids")]

    def embeddings(self, prompt: str, table: torch.nn.Module, rows: Sequence[Tensor]) -> Tensor:
        """Insert the image embeddings into the token embeddings of a prompt."""
        ids = torch.tensor(self.expected[f"{prompt}_ids"])
        images: Iterator[Tensor] = (rows[i] for i in self.expected[f"{prompt}_images"])
        placeholder = int(self.facts["image_token_index"])
        if placeholder == IMAGE_TOKEN_ID:
            parts = [next(images) if i == IMAGE_TOKEN_ID else table(i[None]) for i in ids]
            return torch.cat(parts)
        embedded: Tensor = table(ids).clone()
        for image in images:
            first = int((ids == placeholder).nonzero()[0])
            ids[first : first + len(image)] = 0
            embedded[first : first + len(image)] = image
        assert placeholder not in ids
        return embedded


def load_case(name: str) -> GoldenCase:
    facts = json.loads((GOLDEN / name / "case.json").read_text())
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        return GoldenCase(name, facts, dict(arrays))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

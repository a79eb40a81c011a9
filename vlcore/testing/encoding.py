"""Pictures through a vision model as it is, without what the core makes of its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlcore.testing.failure import fail
from vlcore.vision import ImageRows, VisionModel


def encode(model: VisionModel, pictures: Sequence[Image.Image]) -> list[ImageRows]:
    """Preprocess pictures, and encode them in one forward."""
    return forward(model, [model.preprocess(image) for image in pictures])


def forward(model: VisionModel, inputs: Sequence[Any]) -> list[ImageRows]:
    """Encode preprocessed pictures; shapes and values of the rows are not looked at.

    Raises:
        CheckFailedError: the results are not tensors, one for each picture.
    """
    with torch.inference_mode():
        results: Any = model.forward(inputs)
    where = f"{type(model).__name__}.forward, {len(inputs)} picture(s)"
    advice = "return a list with one matrix, or one ImageRows, for each picture"
    found = [result if isinstance(result, ImageRows) else ImageRows(result) for result in results]
    if len(found) != len(inputs):
        came = f"{len(found)} result(s)"
        fail(expected=f"{len(inputs)} result(s)", came=came, where=where, advice=advice)
    for image in found:
        rows: object = image.rows
        if not isinstance(rows, Tensor):
            fail(expected="tensors", came=type(rows).__name__, where=where, advice=advice)
    return found

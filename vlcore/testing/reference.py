"""A reference file: images, and what the reference implementation computes for them.

One self-contained safetensors file. Images and prompts are numbered from 0:

=================== ================== =========================================================
``picture.N``       [H, W, 3] uint8    an RGB image
``rows.N``          [k, hidden_size]   its embeddings
``prompt.M``        [n] int64          token ids; ``-1 - N`` is image N
``logits.M``        [p, vocab]         logits of the last p positions, embeddings included
=================== ================== =========================================================

Its metadata contains ``format`` (``"vlcore-reference-1"``), ``source`` (the origin of the values),
``rows_tolerance`` and ``logits_tolerance``: the largest difference that passes, as a share of the
largest absolute value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlcore.errors import OptionError

FORMAT = "vlcore-reference-1"
ROWS_TOLERANCE = 1e-4
LOGITS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ReferencePrompt:
    """Token ids and image placeholders, and the logits that a model computes for them.

    Shapes:
        logits: [p, vocab] for the last p positions.
    """

    token_ids: tuple[int, ...]
    logits: Tensor


@dataclass(frozen=True)
class Reference:
    """The values of a reference file.

    Shapes:
        rows: [k, hidden_size] for each image.
    """

    path: Path
    pictures: tuple[Image.Image, ...]
    rows: tuple[Tensor, ...]
    prompts: tuple[ReferencePrompt, ...]
    rows_tolerance: float
    logits_tolerance: float
    source: str

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a reference file.

        Raises:
            OptionError: the file is missing, damaged or of another format.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                values = {name: file.get_tensor(name) for name in file.offset_keys()}
        except (OSError, SafetensorError) as error:
            raise OptionError(
                f"the reference file {path} cannot be read: {error}. "
                "vlcore.testing.record_reference writes one"
            ) from error
        if metadata.get("format") != FORMAT:
            raise OptionError(
                f"{path} is not a reference file: expected format={FORMAT!r} in its metadata, "
                f"found {metadata.get('format')!r}. vlcore.testing.record_reference writes one"
            )
        try:
            pictures = _numbered(values, "picture")
            rows = _numbered(values, "rows")
            prompts, logits = _numbered(values, "prompt"), _numbered(values, "logits")
            if len(pictures) != len(rows) or len(prompts) != len(logits):
                raise ValueError("expected embeddings for each image, and logits for each prompt")
            return cls(
                path,
                tuple(Image.fromarray(pixels.numpy()) for pixels in pictures),
                tuple(rows),
                tuple(
                    ReferencePrompt(tuple(ids.tolist()), values)
                    for ids, values in zip(prompts, logits, strict=True)
                ),
                float(metadata["rows_tolerance"]),
                float(metadata["logits_tolerance"]),
                metadata.get("source", ""),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise OptionError(f"the reference file {path} is incomplete: {error}") from error


def record_reference(
    path: str | Path,
    pictures: Sequence[Image.Image],
    encode: Callable[[Image.Image], Any],
    *,
    prompts: Sequence[Sequence[int]] = (),
    logits: Callable[[Sequence[int]], Any] | None = None,
    source: str = "",
    rows_tolerance: float = ROWS_TOLERANCE,
    logits_tolerance: float = LOGITS_TOLERANCE,
) -> Path:
    """Record what the reference implementation computes, to compare a plugin with it.

    Args:
        path: the file to write.
        pictures: small images; each is converted to RGB, stored, and passed to ``encode``.
        encode: returns the embeddings of an image, as anything that ``torch.as_tensor`` takes.
        prompts: token ids; ``-1 - N`` is all embeddings of image N.
        logits: returns the logits of one of the prompts, at least of its last position.
        source: the origin of the values, such as a repository and its revision.
        rows_tolerance: the largest difference of embeddings that passes, as a share of the largest
            absolute value.
        logits_tolerance: the same for logits.

    Shapes:
        result of encode: [k, hidden_size]; of logits: [p, vocab] for the last p positions.

    Raises:
        OptionError: a shape or a prompt is invalid.
    """
    if prompts and logits is None:
        raise OptionError("prompts need logits: a function that returns the logits of a prompt")
    tensors: dict[str, Tensor] = {}
    for number, image in enumerate(pictures):
        rgb = image.convert("RGB")
        tensors[f"picture.{number}"] = torch.from_numpy(np.array(rgb))
        tensors[f"rows.{number}"] = _as_matrix(encode(rgb), f"encode of image {number}")
    for number, prompt in enumerate(prompts):
        if any(token_id < -len(pictures) for token_id in prompt):
            raise OptionError(
                f"prompt {number} refers to image {-1 - min(prompt)}; there are "
                f"{len(pictures)}, numbered from 0"
            )
        assert logits is not None  # noqa: S101  (for mypy: checked above)
        tensors[f"prompt.{number}"] = torch.tensor(list(prompt), dtype=torch.int64)
        tensors[f"logits.{number}"] = _as_matrix(logits(prompt), f"logits of prompt {number}")
    metadata = {
        "format": FORMAT,
        "source": source,
        "rows_tolerance": repr(float(rows_tolerance)),
        "logits_tolerance": repr(float(logits_tolerance)),
    }
    save_file(tensors, path, metadata)
    return Path(path)


def _numbered(values: dict[str, Tensor], kind: str) -> list[Tensor]:
    count = sum(name.startswith(f"{kind}.") for name in values)
    return [values[f"{kind}.{number}"] for number in range(count)]


def _as_matrix(value: Any, what: str) -> Tensor:
    tensor = torch.as_tensor(value).detach().to("cpu").contiguous().clone()
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise OptionError(
            f"{what} must return a matrix of floats; it returned {tensor.dtype} "
            f"{list(tensor.shape)}"
        )
    return tensor

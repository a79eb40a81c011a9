"""A reference file: pictures, and what another implementation computed for them.

One safetensors file, whole in itself. Pictures and prompts are numbered from 0:

=================== ================== =========================================================
``picture.N``       [H, W, 3] uint8    an RGB picture
``rows.N``          [k, hidden_size]   its rows
``prompt.M``        [n] int64          token ids; ``-1 - N`` stands for all rows of picture N
``logits.M``        [p, vocab]         logits of the last p positions, the rows' among them
=================== ================== =========================================================

Its metadata holds ``format`` (``"vlcore-reference-1"``), ``source`` (where the values come from),
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
    """Token ids among which pictures stand, and what a model computed for them.

    Shapes:
        logits: [p, vocab], of the last p positions.
    """

    token_ids: tuple[int, ...]
    logits: Tensor


@dataclass(frozen=True)
class Reference:
    """The values of a reference file.

    Shapes:
        rows: for each picture [k, hidden_size].
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
            OptionError: it is missing, damaged or of another format.
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
                f"{path} is no reference file: its metadata must say format={FORMAT!r}; it says "
                f"{metadata.get('format')!r}. vlcore.testing.record_reference writes one"
            )
        try:
            pictures = _numbered(values, "picture")
            rows = _numbered(values, "rows")
            prompts, logits = _numbered(values, "prompt"), _numbered(values, "logits")
            if len(pictures) != len(rows) or len(prompts) != len(logits):
                raise ValueError("as many rows as pictures, and logits as prompts, are expected")
            return cls(
                path,
                tuple(Image.fromarray(picture.numpy()) for picture in pictures),
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
    """Record what another implementation computes, for the kit to compare a plugin with.

    Args:
        path: the file to write.
        pictures: small ones; each is stored as RGB, and given to ``encode`` like that.
        encode: gives a picture's rows, as anything that ``torch.as_tensor`` takes.
        prompts: token ids; ``-1 - N`` stands for all rows of picture N.
        logits: gives the logits of a prompt as it is written here, at least of its last position.
        source: where the values come from, such as a repository and its revision.
        rows_tolerance: the largest difference of rows that passes, as a share of the largest one.
        logits_tolerance: the same for logits.

    Shapes:
        result of encode: [k, hidden_size]; of logits: [p, vocab] for the last p positions.

    Raises:
        OptionError: a shape or a prompt does not fit.
    """
    if prompts and logits is None:
        raise OptionError("prompts need logits: a function that gives the logits of a prompt")
    tensors: dict[str, Tensor] = {}
    for number, image in enumerate(pictures):
        rgb = image.convert("RGB")
        tensors[f"picture.{number}"] = torch.from_numpy(np.array(rgb))
        tensors[f"rows.{number}"] = _as_matrix(encode(rgb), f"encode of picture {number}")
    for number, prompt in enumerate(prompts):
        if any(token_id < -len(pictures) for token_id in prompt):
            raise OptionError(
                f"prompt {number} stands for pictures up to {-1 - min(prompt)}; there are "
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
            f"{what} must give a matrix of floats; it gave {tensor.dtype} {list(tensor.shape)}"
        )
    return tensor

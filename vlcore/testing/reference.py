"""A reference file: images, and what the reference implementation computes for them.

One self-contained safetensors file. Images and prompts are numbered from 0:

=================== ================== =========================================================
``picture.N``       [H, W, 3] uint8    an RGB image
``rows.N``          [k, hidden_size]   its embeddings
``prompt.M``        [n] int64          token ids; ``-1 - N`` is image N
``logits.M``        [p, vocab]         logits of the last p positions, embeddings included
``conversation.K``  [n] int64          token ids of its prompt; ``-1`` for each embedding
=================== ================== =========================================================

Its metadata contains ``format`` (``"vlcore-reference-1"``), ``source`` (the origin of the values),
``rows_tolerance`` and ``logits_tolerance`` (the largest difference that passes, as a share of the
largest absolute value), and ``conversations``: the messages of each conversation as JSON, in which
``{"type": "image", "image": N}`` is image N, and ``{"type": "video", "video": [N, M, …]}`` a video
with these images as its frames.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
class ReferenceConversation:
    """The messages of a conversation, and the token ids of its prompt."""

    messages: list[dict[str, Any]]
    """OpenAI-style messages, in which ``image`` of a part is a PIL image."""
    token_ids: tuple[int, ...]
    """Token ids, with -1 instead of each image embedding."""


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
    conversations: tuple[ReferenceConversation, ...]
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
            images = tuple(Image.fromarray(pixels.numpy()) for pixels in pictures)
            return cls(
                path,
                images,
                tuple(rows),
                tuple(
                    ReferencePrompt(tuple(ids.tolist()), values)
                    for ids, values in zip(prompts, logits, strict=True)
                ),
                tuple(
                    ReferenceConversation(_with_images(messages, images), tuple(ids.tolist()))
                    for messages, ids in zip(
                        json.loads(metadata.get("conversations", "[]")),
                        _numbered(values, "conversation"),
                        strict=True,
                    )
                ),
                float(metadata["rows_tolerance"]),
                float(metadata["logits_tolerance"]),
                metadata.get("source", ""),
            )
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise OptionError(f"the reference file {path} is incomplete: {error}") from error


def record_reference(
    path: str | Path,
    pictures: Sequence[Image.Image],
    encode: Callable[[Image.Image], Any],
    *,
    prompts: Sequence[Sequence[int]] = (),
    logits: Callable[[Sequence[int]], Any] | None = None,
    conversations: Sequence[Sequence[Mapping[str, Any]]] = (),
    token_ids: Callable[[list[dict[str, Any]]], Sequence[int]] | None = None,
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
        conversations: OpenAI-style messages, in which ``{"type": "image", "image": N}`` is image N
            of ``pictures``, and ``{"type": "video", "video": [N, M, …], "fps": …}`` a video whose
            frames are such images.
        token_ids: returns the token ids of the prompt for one of the conversations, with -1
            instead of each embedding of an image or video. In the messages that it receives,
            ``image`` of a part is the RGB image, and ``video`` the list of frames.
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
    if conversations and token_ids is None:
        raise OptionError(
            "conversations need token_ids: a function that returns the token ids of a conversation"
        )
    tensors: dict[str, Tensor] = {}
    images: list[Image.Image] = []
    for number, image in enumerate(pictures):
        rgb = image.convert("RGB")
        images.append(rgb)
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
    for number, messages in enumerate(conversations):
        assert token_ids is not None  # noqa: S101  (for mypy: checked above)
        where = f"conversation {number}"
        ids = token_ids(_with_images_of(messages, images, where))
        tensors[f"conversation.{number}"] = _as_ids(ids, f"token_ids of {where}")
    metadata = {
        "format": FORMAT,
        "conversations": json.dumps([list(messages) for messages in conversations]),
        "source": source,
        "rows_tolerance": repr(float(rows_tolerance)),
        "logits_tolerance": repr(float(logits_tolerance)),
    }
    save_file(tensors, path, metadata)
    return Path(path)


def _numbered(values: dict[str, Tensor], kind: str) -> list[Tensor]:
    count = sum(name.startswith(f"{kind}.") for name in values)
    return [values[f"{kind}.{number}"] for number in range(count)]


def _with_images(
    messages: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]
) -> list[dict[str, Any]]:
    """Replace the numbers of images by images.

    Raises:
        IndexError, KeyError, TypeError: a part of a message is invalid, or has no such image.
    """

    def image(number: int) -> Image.Image:
        if not 0 <= number < len(images):
            raise IndexError(f"image {number} of {len(images)}, which are numbered from 0")
        return images[number]

    def resolve(part: Mapping[str, Any]) -> dict[str, Any]:
        if part["type"] == "image":
            return {**part, "image": image(part["image"])}
        if part["type"] == "video":
            return {**part, "video": [image(number) for number in part["video"]]}
        return dict(part)

    return [
        {
            **message,
            "content": message["content"]
            if isinstance(message["content"], str)
            else [resolve(part) for part in message["content"]],
        }
        for message in messages
    ]


def _with_images_of(
    messages: Sequence[Mapping[str, Any]], images: Sequence[Image.Image], where: str
) -> list[dict[str, Any]]:
    try:
        return _with_images(messages, images)
    except (IndexError, KeyError, TypeError) as error:
        raise OptionError(
            f"{where} must be a list of messages, in which each image is "
            '{"type": "image", "image": N} for image N of pictures, and each video '
            '{"type": "video", "video": [N, M]}: '
            f"{type(error).__name__}: {error}"
        ) from error


def _as_ids(ids: Sequence[int], what: str) -> Tensor:
    tensor = torch.tensor([int(token_id) for token_id in ids], dtype=torch.int64)
    if (tensor < -1).any():
        raise OptionError(
            f"{what} must return token ids, with -1 instead of each image embedding; it "
            f"returned {int(tensor.min())}"
        )
    return tensor


def _as_matrix(value: Any, what: str) -> Tensor:
    tensor = torch.as_tensor(value).detach().to("cpu").contiguous().clone()
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise OptionError(
            f"{what} must return a matrix of floats; it returned {tensor.dtype} "
            f"{list(tensor.shape)}"
        )
    return tensor

"""Six conversations, and what transformers makes of each: token ids, embeddings and an answer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.video_utils import VideoMetadata

from transformers_families.checkpoints import TinyCheckpoint
from vlcore import Video

Messages = list[dict[str, Any]]

NEW_TOKENS = 8
_MARK = "\x1a"
"""A text of one token, which replaces a typed text."""


@cache
def sample_image(number: int, size: tuple[int, int]) -> Image.Image:
    """Return an image of coloured fields, whose embeddings differ from field to field."""
    fields = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(fields).resize(size, Image.Resampling.BICUBIC)


WIDE, TALL = sample_image(1, (90, 60)), sample_image(2, (50, 110))
OTHER, LONG = sample_image(3, (90, 60)), sample_image(4, (200, 60))


def user(*parts: str | Image.Image | Video) -> dict[str, Any]:
    """Return a message of a user."""
    return {"role": "user", "content": [_part(part) for part in parts]}


def _part(part: str | Image.Image | Video) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = "video" if isinstance(part, Video) else "image"
    return {"type": kind, kind: part}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def conversations(checkpoint: TinyCheckpoint) -> dict[str, Messages]:
    """Return the conversations; the last one's text imitates the family's special tokens."""
    image = getattr(checkpoint.processor, "image_token", "")
    row = checkpoint.processor.tokenizer.convert_ids_to_tokens(checkpoint.row_id)
    typed = f"{image} {row}<|im_end|>\n<|im_start|>assistant </s>"
    return {
        "no image": [user("No image at all?")],
        "one image": [user(WIDE, "What is this?")],
        "two images": [user(WIDE, "and", TALL, "Compare them.")],
        "three images": [user(OTHER, TALL, LONG, "Three")],
        "two turns": [
            user(TALL, "What is it?"),
            _assistant("A dog."),
            user("And this?", OTHER),
        ],
        "typed special tokens": [user(WIDE, f"Is {typed} text?")],
    }


@cache
def sample_video(number: int, size: tuple[int, int], num_frames: int, fps: float) -> Video:
    """Return a video of which every fifth frame was sampled."""
    frames = tuple(sample_image(100 * number + index, size) for index in range(num_frames))
    times = tuple(5 * index / fps for index in range(num_frames))
    total = 5 * num_frames - 2
    return Video(frames, times, total / fps, fps, total)


CLIP, SHORT = sample_video(1, (90, 60), 8, 10.0), sample_video(2, (50, 110), 3, 29.97)
OTHER_CLIP = sample_video(3, (60, 100), 8, 7.5)
"""As long as the first one, because some of transformers' processors need that in one prompt."""


def video_conversations() -> dict[str, Messages]:
    """Return conversations with videos."""
    return {
        "one video": [user(CLIP, "What happens?")],
        "two videos": [user(CLIP, "and", OTHER_CLIP, "Compare them.")],
        "video and image": [user(WIDE, SHORT, "Is the image part of the video?", TALL)],
        "two turns with videos": [
            user(OTHER_CLIP, "What happens?"),
            _assistant("A dog runs."),
            user("And here?", CLIP, OTHER),
        ],
        "image": [user(WIDE, "What is this?")],
    }


def unusual_conversations() -> dict[str, Messages]:
    """Return conversations with images that a model may refuse, and with several alike."""
    images = {
        f"{width} x {height}": sample_image(number, (width, height))
        for number, (width, height) in enumerate(((1, 1), (300, 3), (3, 300), (900, 2)), 5)
    }
    return {label: [user(image, "What is this?")] for label, image in images.items()} | {
        "the same twice": [user(WIDE, WIDE, "The same?")],
        "in one order": [user(WIDE, OTHER, "The first?")],
        "in the other order": [user(OTHER, WIDE, "The first?")],
    }


@dataclass(frozen=True)
class ReferencePrompt:
    """What transformers makes of a conversation.

    Shapes:
        embeddings: [tokens, hidden_size], with those of images.
        positions: [axes, 1, tokens] or [1, tokens], where the language model is given positions.
        deepstack: [layers, k, hidden_size], for the k embeddings of images.
    """

    token_ids: list[int]
    image_positions: list[int]
    """Where the prompt has image embeddings."""
    embeddings: Tensor
    positions: Tensor | None
    deepstack: Tensor | None
    answer: list[int]
    margin: float
    """Smallest difference between the two largest logits of a step of the answer."""


def reference_prompt(checkpoint: TinyCheckpoint, messages: Messages) -> ReferencePrompt:
    """Let transformers process and answer a conversation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of transformers, about its own code
        inputs = reference_inputs(checkpoint, messages)
    token_ids = inputs["input_ids"][0].tolist()
    with torch.inference_mode(), _recorded_inputs(checkpoint.model) as recorded:
        output = checkpoint.model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    first = recorded[0]
    image_positions = [i for i, token in enumerate(token_ids) if token in checkpoint.row_ids]
    deepstack = first.get("deepstack_visual_embeds")
    best = torch.stack(output.logits).topk(2).values
    return ReferencePrompt(
        token_ids,
        image_positions,
        first["inputs_embeds"][0],
        first.get("position_ids"),
        _stacked(deepstack) if deepstack and image_positions else None,
        output.sequences[0, -NEW_TOKENS:].tolist(),
        float((best[..., 0] - best[..., 1]).min()),
    )


def reference_inputs(checkpoint: TinyCheckpoint, messages: Messages) -> dict[str, Any]:
    """Return the model's inputs, with the texts of messages free of special tokens.

    transformers itself recognizes special tokens that a user types. Here a mark replaces such a
    text, and then the tokens of its characters replace the mark.
    """
    texts: list[str] = []

    def marked(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "text" or "</s>" not in part["text"]:
            return part
        texts.append(part["text"])
        return {"type": "text", "text": _MARK}

    messages = [
        message | {"content": [marked(part) for part in message["content"]]} for message in messages
    ]
    processor, tokenizer = checkpoint.processor, checkpoint.processor.tokenizer
    text = tokenizer.apply_chat_template(
        messages,
        chat_template=processor.chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )
    has_bos = text.startswith(tokenizer.bos_token)
    images, videos = (
        [part[kind] for message in messages for part in message["content"] if part["type"] == kind]
        for kind in ("image", "video")
    )
    if videos:
        inputs = dict(
            processor(
                text=[text],
                images=[images] if images else None,
                videos=[list(video.frames) for video in videos],
                video_metadata=list(map(_metadata, videos)),
                do_sample_frames=False,
                return_tensors="pt",
                add_special_tokens=not has_bos,
            )
        )
    elif images:
        is_flat = checkpoint.family.takes_flat_images
        inputs = dict(
            processor(
                text=text if is_flat else [text],
                images=images if is_flat else [images],
                return_tensors="pt",
                add_special_tokens=not has_bos,
                **checkpoint.family.call_options,
            )
        )
    else:  # some processors insist on an image
        inputs = dict(tokenizer([text], return_tensors="pt", add_special_tokens=not has_bos))
        inputs.pop("token_type_ids", None)
    for name, value in inputs.items():  # some processors return half precision
        if isinstance(value, Tensor) and value.is_floating_point():
            inputs[name] = value.float()
    for text in texts:
        plain = [token for char in text for token in _plain_ids(tokenizer, char)]
        index = inputs["input_ids"][0].tolist().index(*_plain_ids(tokenizer, _MARK))
        inputs = _replaced(inputs, index, plain)
    return inputs


def _metadata(video: Video) -> VideoMetadata:
    indices = [round(time * video.fps) for time in video.times]
    return VideoMetadata(total_num_frames=video.total_frames, fps=video.fps, frames_indices=indices)


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _replaced(inputs: dict[str, Any], index: int, token_ids: Sequence[int]) -> dict[str, Any]:
    """Put tokens instead of one, whose other properties they have."""
    length = inputs["input_ids"].shape[1]
    replaced = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape[:2] == (1, length):
            repeated = value[:, [index] * len(token_ids)]
            if name == "input_ids":
                repeated = torch.tensor([list(token_ids)])
            replaced[name] = torch.cat([value[:, :index], repeated, value[:, index + 1 :]], dim=1)
    return replaced


@contextmanager
def _recorded_inputs(model: Any) -> Iterator[list[dict[str, Any]]]:
    """Record what the language model is called with."""
    recorded: list[dict[str, Any]] = []

    def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorded.append(dict(kwargs))

    handle = model.get_decoder().register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield recorded
    finally:
        handle.remove()


def _stacked(layers: Any) -> Tensor:
    return torch.stack(
        [
            layer.flatten(0, -2) if isinstance(layer, Tensor) else torch.cat(layer)
            for layer in layers
        ]
    )

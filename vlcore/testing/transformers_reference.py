"""transformers' own model and processor of a checkpoint, as a reference implementation."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.errors import ConfigError, OptionError
from vlcore.media.video import Video
from vlcore.processors import image_token_id, load_processor
from vlcore.testing.conversations import Messages, images_of, videos_of


class TransformersReference:
    """The model and the processor that transformers has for a checkpoint.

    They run on the CPU in float32, and images are resized by Pillow where the processor can do so.

    Args:
        checkpoint: the checkpoint, whose ``architectures`` names a class of transformers.
        processor: the processor; ``None`` for the one of the checkpoint's ``model_type``.
        row_token: the token in whose place image embeddings come; ``None`` for the one whose id
            ``config.json`` states.

    Raises:
        OptionError: transformers has no class of this name.
        ConfigError: the processor cannot be built from the settings of the checkpoint.
        PluginError: a package that the processor needs is not installed.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, processor: Any = None, row_token: str | None = None
    ) -> None:
        self.processor = load_processor(checkpoint) if processor is None else processor
        self.row_id = image_token_id(checkpoint, self.processor, row_token)
        with quiet_transformers():
            self.model: Any = _model_class(checkpoint).from_pretrained(
                checkpoint.directory,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
            )
        self.model.eval()
        self._keys = _parameters(self.model.forward)

    @property
    def takes_video(self) -> bool:
        """Whether the processor takes videos, for which transformers' own need torchvision."""
        return getattr(self.processor, "video_processor", None) is not None

    @property
    def end_token_ids(self) -> set[int]:
        """The ids of the tokens that end an answer."""
        stated = self.model.generation_config.eos_token_id
        return set(stated if isinstance(stated, list) else [stated]) - {None}

    @property
    def ties_embeddings(self) -> bool:
        """Whether the output layer has the weights of the token embeddings."""
        output = self.model.get_output_embeddings()
        return output is not None and output.weight is self.model.get_input_embeddings().weight

    def token_ids(self, inputs: Mapping[str, Any]) -> list[int]:
        """Return the ids of a prompt, with ``row_id`` for each embedding of an image or video."""
        video_token = getattr(self.processor, "video_token", None)
        video_id = self.processor.tokenizer.get_vocab().get(str(video_token))
        ids: list[int] = inputs["input_ids"][0].tolist()
        return [self.row_id if token == video_id else token for token in ids]

    def supported(self, conversations: Mapping[str, Messages]) -> dict[str, dict[str, Any]]:
        """Return the inputs of the model for each conversation that the processor supports.

        Raises:
            ConfigError: it supports none of the conversations with an image.
        """
        inputs, reasons = {}, []
        for name, messages in conversations.items():
            try:
                inputs[name] = self._inputs(messages)
            except Exception as error:  # a template is a program and can raise anything
                reasons.append(f"{name}: {type(error).__name__}: {error}")
        if not any(images_of(conversations[name]) for name in inputs):
            raise ConfigError(
                "transformers' processor supports none of the conversations with an image: give "
                "the checkpoint a chat template that writes the images and texts of a list of "
                "parts, and the processor the tokens that it needs. " + "; ".join(reasons)[:600]
            )
        return inputs

    def check_settings(self, name: str, inputs: Mapping[str, Any], num_rows: int) -> None:
        """Check that the processor writes one token for each embedding that the model returns.

        Raises:
            ConfigError: it writes more or fewer.
        """
        num_tokens = int((inputs["input_ids"] == self.row_id).sum())
        if num_tokens != num_rows:
            token = self.processor.tokenizer.convert_ids_to_tokens(self.row_id)
            raise ConfigError(
                f"transformers' processor writes {token!r} {num_tokens} time(s) into the "
                f"conversation {name!r}, and its model returns {num_rows} image embeddings: "
                "compare processor_config.json and preprocessor_config.json of the checkpoint with "
                "config.json. Settings that a file leaves out have the defaults of the class"
            )

    def _inputs(self, messages: Messages) -> dict[str, Any]:
        if videos := videos_of(messages):
            known = self._video_inputs(messages, videos)
            return {key: _as_float32(value) for key, value in known.items() if key in self._keys}
        render = partial(
            self.processor.apply_chat_template, list(messages), add_generation_prompt=True
        )
        try:
            inputs = render(tokenize=True, return_dict=True, return_tensors="pt")
        except Exception:
            images = images_of(messages)
            if not images:
                raise
            # Some processors take the images of one prompt only without a list around the list.
            text = render(tokenize=False)
            bos = self.processor.tokenizer.bos_token
            inputs = self.processor(
                text=text,
                images=images,
                return_tensors="pt",
                add_special_tokens=not (bos and text.startswith(bos)),
            )
        known = {key: value for key, value in inputs.items() if key in self._keys}
        return {key: _as_float32(value) for key, value in known.items()}

    def _video_inputs(self, messages: Messages, videos: Sequence[Video]) -> Mapping[str, Any]:
        if not self.takes_video:
            raise ValueError("the processor takes no videos; transformers' own need torchvision")
        named = [{**message, "content": _without_media(message["content"])} for message in messages]
        text = self.processor.apply_chat_template(named, add_generation_prompt=True, tokenize=False)
        bos = self.processor.tokenizer.bos_token
        images = images_of(messages)
        inputs: Mapping[str, Any] = self.processor(
            text=[text],
            images=[images] if images else None,
            videos=[list(video.frames) for video in videos],
            video_metadata=list(map(_metadata, videos)),
            do_sample_frames=False,
            return_tensors="pt",
            add_special_tokens=not (bos and text.startswith(bos)),
        )
        return inputs

    def pixels(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the pixels among the inputs, of whatever shape."""
        pixels: Tensor = next(
            value for key, value in inputs.items() if key.startswith("pixel_values")
        )
        return pixels

    def rows(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the embeddings of all images among the inputs.

        Shapes:
            result: [k, hidden_size]; with deepstack, [k, hidden_size * (1 + layers)].
        """
        return self._features("get_image_features", inputs)

    def video_rows(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the embeddings of all videos among the inputs, which have no image.

        Shapes:
            result: as for :meth:`rows`.
        """
        is_video = any(key.startswith("pixel_values_videos") for key in inputs)
        return self._features("get_video_features" if is_video else "get_image_features", inputs)

    def _features(self, method: str, inputs: Mapping[str, Any]) -> Tensor:
        inner = getattr(self.model, "model", self.model)  # names all arguments
        owner = inner if hasattr(inner, method) else self.model
        features = getattr(owner, method)
        taken = _parameters(features)
        given = {key: value for key, value in inputs.items() if key in taken}
        with torch.inference_mode():
            output = features(**given, return_dict=True)
        rows = output.pooler_output if output.pooler_output is not None else output[0]
        layers = getattr(output, "deepstack_features", None) or ()
        return torch.cat([_as_matrix(rows), *map(_as_matrix, layers)], dim=-1)

    def logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the logits of every position: [tokens, vocab]."""
        with torch.inference_mode():
            logits: Tensor = self.model(**inputs).logits[0]
        return logits

    def generate(self, inputs: Mapping[str, Any], num_tokens: int) -> list[int]:
        """Return the most likely tokens, up to an end token or a number of tokens."""
        with torch.inference_mode(), quiet_transformers():
            generated = self.model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False)
        length = inputs["input_ids"].shape[1]
        tokens: list[int] = generated[0, length:].tolist()
        return tokens


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and loading reports of transformers."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging  # partly without annotations
    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()


def _model_class(checkpoint: Checkpoint) -> Any:
    import transformers

    names = checkpoint.config.get("architectures") or []
    for name in names:
        if isinstance(found := getattr(transformers, str(name), None), type):
            return found
    raise OptionError(
        f"transformers {transformers.__version__} has none of the architectures {names!r} of "
        f"{checkpoint.name}: it cannot be compared with transformers"
    )


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(inspect.unwrap(function)).parameters)


def _without_media(content: Any) -> Any:
    """Return the parts of a message, of images and videos only the type."""
    if isinstance(content, str):
        return content
    return [part if part["type"] == "text" else {"type": part["type"]} for part in content]


def _metadata(video: Video) -> Any:
    from transformers.video_utils import VideoMetadata

    indices = [round(time * video.fps) for time in video.times]
    return VideoMetadata(total_num_frames=video.total_frames, fps=video.fps, frames_indices=indices)


def _as_float32(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.is_floating_point()
    return value.float() if is_half else value


def _as_matrix(value: Tensor | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    parts = [value] if isinstance(value, Tensor) else value
    return torch.cat([part.flatten(0, -2) for part in parts])

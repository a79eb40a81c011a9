"""The processor of a family: the pixels of an image or a video, and its layout in a prompt."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from transformers.video_utils import VideoMetadata

from vl_plugin_transformers.families import FAMILIES, Family
from vl_plugin_transformers.frames import FrameProcessor, read_video_settings
from vl_plugin_transformers.modeling import read_config
from vlcore import (
    Checkpoint,
    ConfigError,
    OptionError,
    PluginError,
    Video,
    VideoError,
    VideoSampling,
)
from vlcore.processors import load_processor

_GOT_DOWNSAMPLING = 4
"""Patches for each embedding of GOT-OCR's vision encoder, on each axis."""
_MAX_ROUNDING = 1e-3
"""Largest difference of a time from that of a frame, as a share of the time between frames."""


@dataclass(frozen=True)
class Layout:
    """What a processor writes for an image or a video in a prompt."""

    runs: tuple[str | int, ...]
    """Text of the template, and numbers of image embeddings between it."""
    grid: tuple[int, int, int] | None = None
    """Number of frames, lines and columns of the embeddings, where they form a grid."""
    time_step: float = 1.0
    """Steps on the time axis from one frame of the grid to the next."""
    indicators: tuple[int, ...] = ()
    """For each embedding, the index of the indicator that it is, or -1; empty without indicators.
    Indicators are learned embeddings between those of tiles."""

    @property
    def num_rows(self) -> int:
        """Number of embeddings, with indicators."""
        return sum(run for run in self.runs if isinstance(run, int))


class FamilyProcessor:
    """The processor of transformers for one image or video at a time. Thread-safe.

    Images are resized by Pillow, also where torchvision is installed, if the family has an image
    processor that does; pixels are then the same everywhere.

    Args:
        checkpoint: the checkpoint, with the settings of the processor and the tokenizer.

    Raises:
        ConfigError: the checkpoint does not state how images are preprocessed, or transformers
            rejects the settings.
        PluginError: a package that the processor needs is not installed.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        family = FAMILIES[checkpoint.config["model_type"]]
        config = read_config(checkpoint)
        self._name = checkpoint.name
        _check_packages(checkpoint, family)
        self._processor = load_processor(checkpoint)
        tokenizer = self._processor.tokenizer
        self._settings = self._processor._merge_kwargs(
            tokenizer_init_kwargs=tokenizer.init_kwargs, return_tensors="pt"
        )
        arguments = inspect.signature(self._processor._process_images).parameters.values()
        own = {argument.name for argument in arguments if argument.kind is not argument.VAR_KEYWORD}
        self._image_settings = self._settings["images_kwargs"] | {
            key: value for key, value in self._settings.items() if key in own
        }
        self._frames: FrameProcessor | None = None
        self._has_video = bool(family.video)
        self._tokens_per_second: float | None = None
        self._video_refusal = f"{self._name} takes images only, and no videos"
        if family.video:
            try:
                self._frames = FrameProcessor(family.video, read_video_settings(checkpoint))
            except (ConfigError, OptionError) as error:  # images need no such settings
                self._video_refusal = f"{self._name} takes no videos: {error}"
            self._processor.video_processor = self._frames
            self._tokens_per_second = getattr(config.vision_config, "tokens_per_second", None)
        self._fixed_expansion = ""
        ids = [getattr(config, "image_token_id", None) or config.image_token_index]
        ids += getattr(config, "visual_indicator_token_ids", None) or ()
        tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]
        self._row_tokens = [family.row_token or tokens[0], *tokens[1:]]
        """The token of an image embedding, and those of indicators."""
        if family.has_fixed_rows:
            vision = config.vision_config
            num_rows = (vision.image_size // vision.patch_size // _GOT_DOWNSAMPLING) ** 2
            if "num_image_tokens" in own:
                self._image_settings["num_image_tokens"] = num_rows
            self._fixed_expansion = self._row_tokens[0] * num_rows

    @property
    def image_token(self) -> str:
        """The text that a chat template writes for an image."""
        for name in ("image_placeholder_token", "image_token"):
            if token := getattr(self._processor, name, None):
                return str(token)
        return self._fixed_expansion

    @property
    def video_token(self) -> str | None:
        """The text that a chat template writes for a video, where the family takes videos."""
        return str(self._processor.video_token) if self.takes_video else None

    @property
    def takes_video(self) -> bool:
        """Whether the plugin supports videos of the family."""
        return self._has_video

    @property
    def video_sampling(self) -> VideoSampling | None:
        """Which frames of a video the model receives, where the family takes videos."""
        return None if self._frames is None else self._frames.sampling

    @property
    def adds_prefix(self) -> bool:
        """Whether the tokenizer adds its special tokens to a prompt, such as BOS."""
        return bool(self._settings["text_kwargs"].get("add_special_tokens", True))

    def __call__(self, image: Image.Image, num_copies: int = 1) -> tuple[Mapping[str, Any], Layout]:
        """Preprocess an RGB image: the tensors of the model, and the image's layout.

        Several copies are preprocessed as the images of one prompt.
        """
        layout = self._processor.prepare_inputs_layout
        copies = image if num_copies == 1 else [image] * num_copies
        images = layout(images=[copies], text=self.image_token * num_copies, **self._settings)[0]
        tensors, texts = self._processor._process_images(images, **self._image_settings)
        text = texts[0] if texts else self._fixed_expansion
        return tensors, self._layout(text, tensors.get("image_grid_thw"))

    def video(self, video: Video) -> tuple[Mapping[str, Any], Layout]:
        """Preprocess a video: the tensors of the model, and the video's layout."""
        frames = self._frames
        if frames is None:
            raise VideoError(self._video_refusal)
        tensors: dict[str, Any] = dict(frames(video.frames))
        metadata = {"video_metadata": [describe_video(video)]}
        text = self._processor.replace_video_token(tensors | metadata, 0)
        # Some families have the token of images for the frames of a video too.
        runs, tokens = _read_runs(text, [self._row_tokens[0], str(self.video_token)])
        self._check_rows(tokens, text)
        time_step = 1.0
        if self._tokens_per_second is not None:
            seconds = np.float32(frames.temporal_patch_size / _sampled_fps(video))
            time_step = self._tokens_per_second * float(seconds)
        return tensors, Layout(runs, self._merged_grid(tensors.get("video_grid_thw")), time_step)

    def _layout(self, text: str, grid: Any) -> Layout:
        runs, tokens = _read_runs(text, self._row_tokens)
        indicators = tuple(self._row_tokens.index(token) - 1 for token in tokens)
        if not text:
            raise ValueError("the image is too small: the processor makes no embeddings of it")
        self._check_rows(tokens, text)
        return Layout(
            runs,
            self._merged_grid(grid),
            indicators=indicators if len(self._row_tokens) > 1 else (),
        )

    def _check_rows(self, tokens: Sequence[str], text: str) -> None:
        if not tokens:
            raise ConfigError(
                f"config.json of {self._name} names {self._row_tokens[0]!r} as the token of an "
                f"image embedding, and the processor writes none for an image: {text!r:.80}"
            )

    def _merged_grid(self, patches: Any) -> tuple[int, int, int] | None:
        if patches is None:
            return None
        frames, lines, columns = patches[0].tolist()
        merge = getattr(self._processor.image_processor, "merge_size", 1)
        return frames, lines // merge, columns // merge


def _read_runs(text: str, row_tokens: Sequence[str]) -> tuple[tuple[str | int, ...], list[str]]:
    """Return the runs of a layout, and the token of each embedding."""
    runs: list[str | int] = []
    tokens: list[str] = []
    for part in re.split(f"({'|'.join(map(re.escape, row_tokens))})", text):
        if part not in row_tokens:
            runs += [part] if part else []
            continue
        tokens.append(part)
        if runs and isinstance(runs[-1], int):
            runs[-1] += 1
        else:
            runs.append(1)
    return tuple(runs), tokens


def describe_video(video: Video) -> VideoMetadata:
    """Describe a video to transformers, which computes times from indices of frames."""
    fps = video.fps or _sampled_fps(video)
    indices: list[Any] = []
    for time in video.times:
        index = time * fps
        # The quotient of an integer is the time as transformers computes it.
        indices.append(round(index) if abs(index - round(index)) < _MAX_ROUNDING else index)
    return VideoMetadata(total_num_frames=video.total_frames, fps=fps, frames_indices=indices)


def _sampled_fps(video: Video) -> float:
    """Return how many of the frames that the model receives there are in a second."""
    if video.fps:
        return len(video.frames) / video.total_frames * video.fps
    return len(video.frames) / video.duration if video.duration else 1.0


def _check_packages(checkpoint: Checkpoint, family: Family) -> None:
    missing = [name for name in family.packages if not is_installed(name)]
    if missing:
        raise PluginError(
            f"{checkpoint.name} is a {checkpoint.config['model_type']} model, whose processor "
            f"needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return importlib.util.find_spec(package) is not None

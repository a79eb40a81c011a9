"""The frames of a video, as transformers' video processors preprocess them, without torchvision.

transformers' own classes need torchvision. The steps of those that the plugin knows are a resize,
which torchvision leaves to torch, a normalisation and a division into patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers.utils.constants import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from vlcore import Checkpoint, ConfigError, VideoError, VideoSampling

Values = Mapping[str, Any]
_MAX_ASPECT_RATIO = 200
_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


@dataclass(frozen=True)
class VideoRule:
    """What distinguishes one of transformers' video processors from the others."""

    size: Callable[[int, int, int, Values], tuple[int, int]]
    """Returns the height and width of a frame, from the number, height and width of the frames."""
    defaults: Values
    """The settings that a checkpoint may leave out."""
    sampling: VideoSampling
    """Which frames are sampled, where the settings do not state it."""
    is_packed: bool = True
    """Whether frames are divided into patches, instead of being images of one size."""


class FrameProcessor:
    """Preprocesses the frames of a video, which are not sampled again. Thread-safe.

    Args:
        name: the name of transformers' video processor.
        settings: its settings in the checkpoint.

    Raises:
        ConfigError: a setting has a wrong type, or is not supported.
        OptionError: a setting of the frames to sample is out of range.
    """

    def __init__(self, name: str, settings: Values) -> None:
        rule = VIDEO_RULES[name]
        values = dict(rule.defaults) | {key: v for key, v in settings.items() if v is not None}
        values["size"] = _size_with_old_names(values)
        try:
            self.merge_size = int(values["merge_size"])
            self.patch_size = int(values["patch_size"])
            self.temporal_patch_size = int(values["temporal_patch_size"])
            self._mode = _MODES[Image.Resampling(values["resample"])]
            scale = float(values["rescale_factor"]) if values["do_rescale"] else 1.0
            mean, std = (torch.tensor(values[key]) for key in ("image_mean", "image_std"))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the settings of {name} are not supported: {type(error).__name__}: {error}"
            ) from error
        if not (values["do_normalize"] and values["do_resize"]) or values.get("do_center_crop"):
            raise ConfigError(
                f"the settings of {name} are not supported: it must resize and normalise, and "
                "not crop"
            )
        self.sampling = _sampling(rule.sampling, values)
        """Which frames of a video these are, unless a request states otherwise."""
        self._rule = rule
        self._values = values
        # Both are scaled instead of the pixels, as in transformers.
        self._mean, self._std = mean * (1.0 / scale), std * (1.0 / scale)

    def frame_size(self, num_frames: int, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the preprocessed frames of a video.

        Raises:
            VideoError: the frames have a shape that the model does not take.
        """
        sides = sorted((height, width))
        if sides[1] > _MAX_ASPECT_RATIO * sides[0] and self._rule.is_packed:
            raise VideoError(
                f"a frame has {width} x {height} pixels: the longer side may be "
                f"{_MAX_ASPECT_RATIO} times the shorter one at most"
            )
        return self._rule.size(num_frames, height, width, self._values)

    def __call__(self, frames: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Preprocess the frames of one video, which have the same size.

        Shapes:
            pixel_values_videos: [patches, 3 * temporal_patch_size * patch_size ** 2] where frames
                are divided into patches, and [1, frames, 3, H, W] elsewhere; float32.
            video_grid_thw: [1, 3] int64, the number of patches in time, lines and columns, where
                frames are divided into patches.
        """
        width, height = frames[0].size
        size = self.frame_size(len(frames), height, width)
        pixels = torch.cat([self._resized(frame, size) for frame in frames]).float()
        pixels.sub_(self._mean.view(3, 1, 1)).div_(self._std.view(3, 1, 1))
        if not self._rule.is_packed:
            return {"pixel_values_videos": pixels[None]}
        patches, grid = self._patches(pixels)
        return {"pixel_values_videos": patches, "video_grid_thw": torch.tensor([grid])}

    def _resized(self, frame: Image.Image, size: tuple[int, int]) -> Tensor:
        """Return a frame in its new size.

        Shapes:
            result: [1, 3, H, W] uint8.
        """
        pixels = torch.from_numpy(np.array(frame.convert("RGB"))).permute(2, 0, 1)[None]
        if pixels.shape[-2:] == size:
            return pixels
        if self._mode == "bicubic" or _resizes_bytes():
            return interpolate(pixels, size, mode=self._mode, align_corners=False, antialias=True)
        resized = interpolate(
            pixels.float(), size, mode=self._mode, align_corners=False, antialias=True
        )
        return resized.round_().byte()

    def _patches(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """Divide frames into patches, in the order in which they are merged.

        Shapes:
            pixels: [frames, 3, H, W].
            result: [patches, 3 * temporal_patch_size * patch_size ** 2].
        """
        step, patch, merge = self.temporal_patch_size, self.patch_size, self.merge_size
        if missing := -len(pixels) % step:
            pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
        grid = (len(pixels) // step, pixels.shape[2] // patch, pixels.shape[3] // patch)
        blocks = pixels.view(
            grid[0], step, 3, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch
        )
        patches = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return patches.reshape(math.prod(grid), -1), grid


def read_video_settings(checkpoint: Checkpoint) -> Values:
    """Return the settings of the video processor, from the files that transformers reads."""
    nested = (checkpoint.read_json("processor_config.json") or {}).get("video_processor")
    if isinstance(nested, Mapping):
        return nested
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if (settings := checkpoint.read_json(name)) is not None:
            return settings
    return {}


def _sampling(usual: VideoSampling, settings: Values) -> VideoSampling:
    stated = {key: settings[key] for key in ("fps", "num_frames") if settings.get(key) is not None}
    if stated:
        usual = replace(usual, **{"fps": None, "num_frames": None} | stated)
    limits = ("min_frames", "max_frames")
    return replace(usual, **{key: settings[key] for key in limits if settings.get(key) is not None})


def _resizes_bytes() -> bool:
    """Return whether torchvision leaves bytes to torch for the bilinear filter."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _size_with_old_names(values: Values) -> dict[str, int]:
    """Return ``size``, with the limits that older checkpoints state next to it."""
    size = dict(values["size"])
    for old, new in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if values.get(old) is not None and "shortest_edge" in size:
            size[new] = values[old]
    return size


def _factor(values: Values) -> int:
    return int(values["patch_size"] * values["merge_size"])


def _resized_by_area(
    sides: tuple[int, int], num_pixels: int, limits: tuple[int, int], factor: int, num_frames: int
) -> tuple[int, int]:
    """Scale the sides of frames to multiples of a factor, with a number of pixels within limits.

    Args:
        sides: height and width of a frame.
        num_pixels: the number of pixels that is limited, before the frames are scaled.
        limits: the smallest and the largest number of pixels.
        factor: the sides are multiples of it.
        num_frames: the number of frames that have the pixels.

    Source:
        ``smart_resize`` of Qwen2-VL and Qwen3-VL in transformers.
    """
    smallest, largest = limits
    height, width = (round(side / factor) * factor for side in sides)
    if num_frames * height * width > largest:
        ratio = math.sqrt(num_pixels / largest)
        height, width = (max(factor, math.floor(side / ratio / factor) * factor) for side in sides)
    elif num_frames * height * width < smallest:
        ratio = math.sqrt(smallest / num_pixels)
        height, width = (math.ceil(side * ratio / factor) * factor for side in sides)
    return height, width


def _size_by_frame(num_frames: int, height: int, width: int, values: Values) -> tuple[int, int]:
    """Return the size where each frame has limits of its own."""
    smallest, largest = values["size"]["shortest_edge"], values["size"]["longest_edge"]
    factor = _factor(values)
    if values.get("cap_pixels_per_frame"):
        total = int(values["max_video_tokens"] * factor * factor * 0.9)
        share = total * values["temporal_patch_size"] // num_frames
        largest = max(min(largest, share), int(smallest * 1.05))
    return _resized_by_area((height, width), height * width, (smallest, largest), factor, 1)


def _size_by_video(num_frames: int, height: int, width: int, values: Values) -> tuple[int, int]:
    """Return the size where all frames of a video together have limits."""
    smallest, largest = values["size"]["shortest_edge"], values["size"]["longest_edge"]
    factor, step = _factor(values), values["temporal_patch_size"]
    if values.get("cap_pixels_per_frame"):
        share = min(values["max_video_tokens"] * factor * factor, largest // num_frames)
        largest = max(share, int(smallest * 1.05)) * num_frames
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    num_pixels = num_frames * height * width
    num_counted = round(num_frames / step) * step
    return _resized_by_area((height, width), num_pixels, (smallest, largest), factor, num_counted)


def _fixed_size(num_frames: int, height: int, width: int, values: Values) -> tuple[int, int]:  # noqa: ARG001
    return int(values["size"]["height"]), int(values["size"]["width"])


_COMMON: dict[str, Any] = {
    "resample": Image.Resampling.BICUBIC,
    "rescale_factor": 1 / 255,
    "do_rescale": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": OPENAI_CLIP_MEAN,
    "image_std": OPENAI_CLIP_STD,
    "merge_size": 1,
    "temporal_patch_size": 1,
    "patch_size": 1,
}

VIDEO_RULES: dict[str, VideoRule] = {
    "InternVLVideoProcessor": VideoRule(
        _fixed_size,
        _COMMON | {"size": {"height": 384, "width": 384}},
        VideoSampling(num_frames=8, position="middle"),
        is_packed=False,
    ),
    "Qwen2VLVideoProcessor": VideoRule(
        _size_by_frame,
        _COMMON
        | {
            "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768},
            "patch_size": 14,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "max_video_tokens": 128000,
        },
        VideoSampling(fps=2, min_frames=4, max_frames=768, multiple_of=2),
    ),
    "Qwen3VLVideoProcessor": VideoRule(
        _size_by_video,
        _COMMON
        | {
            "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768},
            "image_mean": IMAGENET_STANDARD_MEAN,
            "image_std": IMAGENET_STANDARD_STD,
            "patch_size": 16,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "max_video_tokens": 768,
        },
        VideoSampling(fps=2, min_frames=4, max_frames=768, position="ends"),
    ),
}
"""The video processors of transformers that need no torchvision here, by their names."""

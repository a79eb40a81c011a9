"""The processor of a family, which returns the pixels of an image and its layout in a prompt."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vl_plugin_transformers.families import FAMILIES, Family
from vl_plugin_transformers.modeling import read_config
from vlcore import Checkpoint, ConfigError, PluginError
from vlcore.processors import load_processor

_GOT_DOWNSAMPLING = 4
"""Patches for each embedding of GOT-OCR's vision encoder, on each axis."""


@dataclass(frozen=True)
class Layout:
    """What a processor writes for an image in a prompt."""

    runs: tuple[str | int, ...]
    """Text of the template, and numbers of image embeddings between it."""
    grid: tuple[int, int, int] | None = None
    """Number of frames, lines and columns of the embeddings, where they form a grid."""
    indicators: tuple[int, ...] = ()
    """For each embedding, the index of the indicator that it is, or -1; empty without indicators.
    Indicators are learned embeddings between those of tiles."""

    @property
    def num_rows(self) -> int:
        """Number of the image's embeddings, with indicators."""
        return sum(run for run in self.runs if isinstance(run, int))


class FamilyProcessor:
    """The processor of transformers for one image at a time. Thread-safe.

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

    def _layout(self, text: str, grid: Any) -> Layout:
        runs: list[str | int] = []
        indicators: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, self._row_tokens))})", text):
            if part not in self._row_tokens:
                runs += [part] if part else []
                continue
            indicators.append(self._row_tokens.index(part) - 1)
            if runs and isinstance(runs[-1], int):
                runs[-1] += 1
            else:
                runs.append(1)
        if not text:
            raise ValueError("the image is too small: the processor makes no embeddings of it")
        if not indicators:
            raise ConfigError(
                f"config.json of {self._name} names {self._row_tokens[0]!r} as the token of an "
                f"image embedding, and the processor writes none for an image: {text!r:.80}"
            )
        frames, lines, columns = (1, 1, 1) if grid is None else grid[0].tolist()
        merge = getattr(self._processor.image_processor, "merge_size", 1)
        return Layout(
            tuple(runs),
            None if grid is None else (frames, lines // merge, columns // merge),
            tuple(indicators) if len(self._row_tokens) > 1 else (),
        )


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

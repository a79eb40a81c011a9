"""The processor of a family, which returns the pixels of an image and its layout in a prompt."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from PIL import Image
from transformers.models.auto import image_processing_auto, processing_auto
from transformers.models.auto.auto_mappings import VIDEO_PROCESSOR_MAPPING_NAMES

from vl_plugin_transformers.families import FAMILIES, Family
from vl_plugin_transformers.modeling import read_config
from vlcore import Checkpoint, ConfigError, PluginError

_IMAGE_PROCESSORS = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"]
_PROCESSORS = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]
_GOT_DOWNSAMPLING = 4
"""Patches for each embedding of GOT-OCR's vision encoder, on each axis."""
_SETTINGS_FILES = ("processor_config.json", "preprocessor_config.json")


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
        self._processor = _load(checkpoint, family)
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


def _load(checkpoint: Checkpoint, family: Family) -> Any:
    """Build the processor with Pillow's image processor, and without that of videos."""
    model_type = checkpoint.config["model_type"]
    _check_packages(checkpoint, family)
    own, images = _read_settings(checkpoint)
    stated = str(images.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    names = _IMAGE_PROCESSORS.get(model_type)
    names = names or {"pil": f"{stated}Pil", "torchvision": stated}
    image_class = _usable(names.get("pil")) or _usable(names.get("torchvision"))
    processor_class = _usable(_PROCESSORS.get(model_type) or own.get("processor_class"))
    if image_class is None or processor_class is None:
        raise ConfigError(
            f"transformers {transformers.__version__} has no processor of images for "
            f"{checkpoint.name} (model_type {model_type!r}, image_processor_type {stated!r})"
        )
    parts: dict[str, Any] = dict.fromkeys(processor_class.get_attributes())
    taken = inspect.signature(processor_class.__init__).parameters
    options = {key: value for key, value in own.items() if key in taken and key not in parts}
    try:
        parts["image_processor"] = image_class.from_dict(dict(images))
        parts["tokenizer"] = checkpoint.tokenizer()
        if "video_processor" in parts:
            parts["video_processor"] = _video_processor(model_type)
        return _without_checks(processor_class)(**parts, **options)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(
            f"transformers cannot build {processor_class.__name__} from "
            f"{' and '.join(_SETTINGS_FILES)} of {checkpoint.name}: {type(error).__name__}: {error}"
        ) from error


def _read_settings(checkpoint: Checkpoint) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Read the settings of the processor, and those of its image processor."""
    own = checkpoint.read_json("processor_config.json") or {}
    images = own.get("image_processor") or checkpoint.read_json("preprocessor_config.json")
    if not isinstance(images, Mapping):
        raise ConfigError(
            f"{checkpoint.name} does not state how images are preprocessed: it needs "
            f"{' or '.join(_SETTINGS_FILES)} of the original repository"
        )
    return own, images


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


def _usable(name: object) -> Any:
    """A class of transformers, unless a package that it needs is not installed."""
    found = getattr(transformers, name, None) if isinstance(name, str) and name else None
    return None if getattr(found, "is_dummy", False) else found


def _video_processor(model_type: str) -> Any:
    """The video processor with its default settings, which some processors read; or ``None``."""
    names = VIDEO_PROCESSOR_MAPPING_NAMES.get(model_type) or {}
    video_class = _usable(names.get("torchvision"))
    return None if video_class is None else video_class()


def _without_checks(processor_class: Any) -> Any:
    """A processor class that accepts ``None`` for parts which are not installed."""

    class PartialProcessor(processor_class):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: object) -> object:
            if argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    PartialProcessor.__name__ = processor_class.__name__
    return PartialProcessor

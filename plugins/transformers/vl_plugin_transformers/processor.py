"""The processor of a family, which returns the pixels of an image and its layout in a prompt."""

from __future__ import annotations

import importlib.util
import inspect
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from PIL import Image
from transformers.models.auto import image_processing_auto, processing_auto
from transformers.models.auto.auto_mappings import VIDEO_PROCESSOR_MAPPING_NAMES

from vl_plugin_transformers.families import FAMILIES, Family
from vlcore import Checkpoint, ConfigError, PluginError

_IMAGE_PROCESSORS = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"]
_PROCESSORS = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]
_SETTINGS_FILES = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Layout:
    """What a processor writes for an image in a prompt."""

    runs: tuple[str | int, ...]
    """Text of the template, and numbers of image embeddings between it."""

    @property
    def num_rows(self) -> int:
        """Number of the image's embeddings."""
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
        self.family = FAMILIES[checkpoint.config["model_type"]]
        self._processor = _load(checkpoint, self.family)
        self._tokenizer = self._processor.tokenizer
        self._row_token = self.family.row_token or self._configured_token(checkpoint.config)
        self._lock = threading.Lock()
        self._options = self._processor._merge_kwargs(
            tokenizer_init_kwargs=self._tokenizer.init_kwargs, return_tensors="pt"
        )["images_kwargs"]

    @property
    def image_token(self) -> str:
        """The text that a chat template writes for an image."""
        return str(
            getattr(self._processor, "image_placeholder_token", None) or self._processor.image_token
        )

    def __call__(self, image: Image.Image) -> tuple[Mapping[str, Any], Layout]:
        """Preprocess an RGB image: the tensors of the model, and the image's layout."""
        if self.family.reads_ids:
            return self._read_ids(image)
        nested = self._processor.prepare_inputs_layout(images=[image], text=self.image_token)[0]
        tensors, texts = self._processor._process_images(nested, **self._options)
        return tensors, self._layout(texts[0])

    def _read_ids(self, image: Image.Image) -> tuple[Mapping[str, Any], Layout]:
        """Preprocess a prompt that is the image alone, and read the expansion from its ids."""
        with self._lock:  # a tokenizer cannot be used by two threads
            tensors = self._processor(
                text=self.image_token, images=[image], return_tensors="pt", add_special_tokens=False
            )
            tokens = self._tokenizer.convert_ids_to_tokens(tensors["input_ids"][0].tolist())
        return tensors, self._layout("".join(tokens))

    def _layout(self, text: str) -> Layout:
        token = self._row_token
        parts = re.split(f"((?:{re.escape(token)})+)", text)
        return Layout(
            tuple(
                len(part) // len(token) if part.startswith(token) else part
                for part in parts
                if part
            )
        )

    def _configured_token(self, config: Mapping[str, Any]) -> str:
        """The token whose id the configuration, or else the processor, names for images."""
        token_id = config.get("image_token_id", config.get("image_token_index"))
        if token_id is None:
            return self.image_token
        return str(self._tokenizer.convert_ids_to_tokens(token_id))


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
        parts["image_processor"] = image_class(
            **{key: value for key, value in images.items() if not key.endswith("_type")}
        )
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
    missing = [name for name in family.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise PluginError(
            f"{checkpoint.name} is a {checkpoint.config['model_type']} model, whose processor "
            f"needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


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

"""Processors of transformers, which preprocess images and write their tokens into a prompt.

For plugins of families that transformers ships. Processors work without torchvision where their
image processor has a Pillow backend: a processor of videos, which needs torchvision, is then left
out.

This module imports transformers: import it inside the hooks.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from PIL import Image
from transformers import CONFIG_MAPPING
from transformers.models.auto import image_processing_auto, processing_auto
from transformers.models.auto.auto_mappings import VIDEO_PROCESSOR_MAPPING_NAMES

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.errors import ConfigError, ImageError, PluginError
from vlcore.prompts.messages import Control, Rows

__all__ = ["ImageRuns", "PromptImageProcessor", "load_processor"]

_IMAGE_TOKEN_KEYS = ("image_token_id", "image_token_index")
_TEXT_KEYS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class ImageRuns:
    """What takes the place of an image in a prompt.

    It is a layout for ``ImageInputs``; ``ChatTemplate.expand`` returns its :meth:`parts`.
    """

    runs: tuple[str | int, ...]
    """Texts of the processor, and numbers of image embeddings between them."""
    grid: tuple[int, int, int] | None = None
    """Number of frames, lines and columns of the embeddings, where the processor states it, as
    :func:`~vlcore.grid_positions` needs it."""

    @property
    def num_rows(self) -> int:
        """Number of the image's embeddings."""
        return sum(run for run in self.runs if isinstance(run, int))

    def parts(self) -> tuple[Control | Rows, ...]:
        """Return the content of the image's slot."""
        return tuple(Rows(run) if isinstance(run, int) else Control(run) for run in self.runs)


class PromptImageProcessor:
    """Preprocesses an image, and reads from the processor what takes its place in a prompt.

    Thread-safe. The processor is called with a prompt that is one image.

    Args:
        checkpoint: the checkpoint, with the settings of the processor and the tokenizer.
        row_token: the token in whose place image embeddings come; by default, the one whose id
            ``config.json`` states as ``image_token_id`` or ``image_token_index``.

    Raises:
        ConfigError: the checkpoint does not state how images are preprocessed, or transformers
            rejects the settings.
        PluginError: a package that the processor needs is not installed.
    """

    def __init__(self, checkpoint: Checkpoint, row_token: str | None = None) -> None:
        self.processor = load_processor(checkpoint)
        self._row_id = image_token_id(checkpoint, self.processor, row_token)
        # The first call sets up the tokenizer, which several threads may then use.
        self.processor.tokenizer(self.image_token, add_special_tokens=False)

    @property
    def image_token(self) -> str:
        """The text that the chat template writes for an image."""
        return placeholder_token(self.processor)

    def __call__(self, image: Image.Image) -> tuple[dict[str, Any], ImageRuns]:
        """Preprocess an image.

        Args:
            image: an image of any mode.

        Returns:
            The tensors for the model, and what takes the image's place in a prompt.

        Raises:
            ImageError: the processor refuses the image, because of its shape for example.
        """
        try:
            outputs = self.processor(
                text=self.image_token,
                images=[image.convert("RGB")],
                return_tensors="pt",
                add_special_tokens=False,
            )
        except (ArithmeticError, ValueError) as error:
            raise ImageError(
                f"{type(self.processor).__name__} cannot preprocess an image of "
                f"{image.width} x {image.height} pixels: {error}"
            ) from error
        tensors = {key: value for key, value in outputs.items() if key not in _TEXT_KEYS}
        runs = self._runs(outputs["input_ids"][0].tolist())
        return tensors, ImageRuns(runs, self._grid(tensors.get("image_grid_thw")))

    def _grid(self, patches: Any) -> tuple[int, int, int] | None:
        if patches is None:
            return None
        frames, lines, columns = patches[0].tolist()
        merged = getattr(self.processor.image_processor, "merge_size", 1)
        return frames, lines // merged, columns // merged

    def _runs(self, ids: list[int]) -> tuple[str | int, ...]:
        tokenizer = self.processor.tokenizer
        runs: list[str | int] = []
        texts: list[int] = []

        def flush() -> None:
            if texts:
                runs.append(tokenizer.decode(texts, skip_special_tokens=False))
                texts.clear()

        for token_id in ids:
            if token_id != self._row_id:
                texts.append(token_id)
                continue
            flush()
            if runs and isinstance(runs[-1], int):
                runs[-1] += 1
            else:
                runs.append(1)
        flush()
        return tuple(runs)


def load_processor(checkpoint: Checkpoint) -> Any:
    """Load the processor of a checkpoint that transformers knows.

    Images are resized by Pillow where the image processor can do so, also if torchvision is
    installed, so that pixels are the same everywhere.

    Args:
        checkpoint: the checkpoint, with the settings of the processor in ``processor_config.json``
            or ``preprocessor_config.json``, and the tokenizer.

    Raises:
        ConfigError: the checkpoint does not state how images are preprocessed, or transformers
            rejects the settings.
        PluginError: a package that the processor needs is not installed.
    """
    settings = dict(checkpoint.read_json("processor_config.json") or {})
    images = settings.get("image_processor") or checkpoint.read_json("preprocessor_config.json")
    if not isinstance(images, Mapping):
        raise ConfigError(
            f"{checkpoint.name} does not state how images are preprocessed: it needs "
            "preprocessor_config.json, or image_processor in processor_config.json"
        )
    processor_class = _processor_class(checkpoint, settings)
    image_class = _image_processor_class(checkpoint, images)
    parts: dict[str, Any] = dict.fromkeys(processor_class.get_attributes())
    taken = inspect.signature(processor_class.__init__).parameters
    options = {key: value for key, value in settings.items() if key in taken and key not in parts}
    try:
        parts["image_processor"] = image_class.from_dict(dict(images))
        parts["tokenizer"] = checkpoint.tokenizer()
        if "video_processor" in parts:
            parts["video_processor"] = _video_processor(checkpoint, settings)
        processor = _without_missing_parts(processor_class)(**parts, **options)
    except ImportError as error:
        raise PluginError(
            f"the processor of {checkpoint.name}, {processor_class.__name__}, needs a package that "
            f"is not installed: {error}"
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"transformers cannot build {processor_class.__name__} from processor_config.json and "
            f"preprocessor_config.json of {checkpoint.name}: {type(error).__name__}: {error}"
        ) from error
    processor.chat_template = checkpoint.chat_template
    return processor


def placeholder_token(processor: Any) -> str:
    """Return the text that a chat template writes for an image."""
    token = getattr(processor, "image_placeholder_token", None) or processor.image_token
    return str(getattr(token, "content", token))


def image_token_id(checkpoint: Checkpoint, processor: Any, row_token: str | None = None) -> int:
    """Return the id of the token in whose place image embeddings come.

    Raises:
        ConfigError: the tokenizer does not have it, or neither ``config.json`` nor the class of
            the configuration states it.
    """
    if row_token is not None:
        token_id = processor.tokenizer.get_vocab().get(row_token)
    else:
        token_id = _configured_image_token(checkpoint.config)
    if not isinstance(token_id, int):
        raise ConfigError(
            f"{checkpoint.name} does not state the token in whose place image embeddings come: "
            "config.json needs image_token_id, or row_token a token of the tokenizer; row_token is "
            f"{row_token!r}"
        )
    return token_id


def _configured_image_token(config: Mapping[str, Any]) -> object:
    """Return the token id that ``config.json`` states, or else the default of its class."""
    for key in _IMAGE_TOKEN_KEYS:
        if config.get(key) is not None:
            return config[key]
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return None
    defaults = CONFIG_MAPPING[model_type]()
    return next(
        (getattr(defaults, key) for key in _IMAGE_TOKEN_KEYS if hasattr(defaults, key)), None
    )


def _processor_class(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Any:
    model_type = checkpoint.config.get("model_type")
    names: Any = processing_auto  # it exports the table without saying so
    known = names.PROCESSOR_MAPPING_NAMES.get(str(model_type))
    name = known or settings.get("processor_class")
    found = _usable_class(name)
    if found is None:
        raise _missing(checkpoint, "processor", name)
    return found


def _image_processor_class(checkpoint: Checkpoint, images: Mapping[str, Any]) -> Any:
    stated = str(images.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    model_type = str(checkpoint.config.get("model_type"))
    table: Any = image_processing_auto  # it exports the table without saying so
    names = table.IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}
    for name in (names.get("pil"), f"{stated}Pil", names.get("torchvision"), stated):
        if (found := _usable_class(name)) is not None:
            return found
    raise _missing(checkpoint, "image processor", names.get("torchvision") or stated)


def _video_processor(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Any:
    """Return the processor of videos, or ``None`` where torchvision is missing.

    Args:
        checkpoint: the checkpoint.
        settings: what ``processor_config.json`` states.
    """
    videos = settings.get("video_processor")
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        videos = checkpoint.read_json(name) if videos is None else videos
    videos = dict(videos or {})
    names = VIDEO_PROCESSOR_MAPPING_NAMES.get(str(checkpoint.config.get("model_type"))) or {}
    stated = names.get("torchvision") or videos.get("video_processor_type")
    video_class = _usable_class(stated)
    return None if video_class is None else video_class.from_dict(videos)


def _usable_class(name: object) -> Any:
    """Return a class of transformers, or ``None`` if a package that it needs is missing."""
    found = getattr(transformers, name, None) if isinstance(name, str) and name else None
    return None if getattr(found, "is_dummy", False) else found


def _missing(checkpoint: Checkpoint, what: str, name: object) -> Exception:
    exists = isinstance(name, str) and getattr(transformers, name, None) is not None
    if exists:
        return PluginError(
            f"the {what} of {checkpoint.name}, {name}, needs a package that is not installed, in "
            "most cases torchvision: pip install torchvision"
        )
    return ConfigError(
        f"transformers {transformers.__version__} has no {what} {name!r} for {checkpoint.name} "
        f"(model_type {checkpoint.config.get('model_type')!r})"
    )


def _without_missing_parts(processor_class: Any) -> Any:
    """Derive a processor class that accepts ``None`` for parts that are not loaded."""

    class PartialProcessor(processor_class):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: object) -> object:
            if argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    PartialProcessor.__name__ = processor_class.__name__
    return PartialProcessor

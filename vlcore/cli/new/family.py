"""A family of vision-language models that transformers ships, as a new plugin needs to know it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlcore.cli.new.tiny_config import EDGE, tiny_settings
from vlcore.errors import OptionError

_TEXT_NAMES = ("language_model", "text_model")
_ROW_KEYS = ("image_token_id", "image_token_index")
_OWN_TOKENS = {"bos_token", "eos_token", "pad_token", "unk_token"}


@dataclass(frozen=True)
class TransformersFamily:
    """What the source of a plugin for a family of transformers depends on."""

    config_class: str
    model_type: str
    architecture: str
    inner_class: str
    """The class that holds the vision encoder, the projector and the language model."""
    inner_module: str
    text_name: str
    """The attribute of the language model in it."""
    requires: Mapping[str, str]
    """Features of ``LanguageModel.requires``, and where the configuration shows each."""
    feature_inputs: tuple[str, ...]
    """What the class reads of the processor's outputs to encode images."""
    has_tower: bool
    """Whether tiles are encoded independently of each other, and from pixels alone."""
    vision_prefixes: tuple[Mapping[str, str], ...]
    """Prefixes of the tensors in each layout, and those in the inner class."""
    text_prefixes: tuple[Mapping[str, str], ...]
    """Prefixes of the tensors in each layout, and those in the standard architecture."""
    image_processor: str
    processor: str
    image_sizes: Mapping[str, Any]
    """Tiny sizes for the image processor."""
    processor_options: Mapping[str, Any]
    """Numbers and values without a default among the settings of the processor."""
    named_tokens: Mapping[str, str]
    """Special tokens that the processor reads from the tokenizer by these names."""
    more_tokens: tuple[str, ...]
    """Special tokens that the processor writes by their text."""
    placeholder: str
    """The text that the chat template writes for an image, as far as the processor shows it."""
    row_token: str
    """The token that stands for an embedding, as far as the processor shows it."""
    row_key: str
    """The setting of the configuration that holds its id."""
    config: Mapping[str, Any]
    """Tiny settings of the configuration."""


def inspect_family(config_class: str) -> TransformersFamily:
    """Find out about a family.

    Args:
        config_class: the name of its configuration class, such as ``"SomeConfig"``.

    Raises:
        OptionError: transformers has no such class, it is not that of a vision-language model, or
            its language model has no standard architecture.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    from vlcore.testing.needed_features import needed_features

    tables: Any = modeling_auto
    classes: Mapping[str, Any] = tables.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    found: Any = getattr(transformers, config_class, None)
    model_type = str(getattr(found, "model_type", None))
    if model_type not in classes:
        known = ", ".join(sorted(_config_class_of(name) for name in classes))
        raise OptionError(
            f"--from-transformers expects the configuration class of a vision-language model of "
            f"transformers {transformers.__version__}; received {config_class!r}. Known: {known}"
        )
    named = classes[model_type]
    architecture = named if isinstance(named, str) else named[0]
    settings = tiny_settings(found().to_dict())
    model = _build(getattr(transformers, architecture), found, settings, config_class)
    inner = getattr(model, "model", None)
    text_name = next((name for name in _TEXT_NAMES if hasattr(inner, name)), None)
    text_type = getattr(model.config.get_text_config(), "model_type", None)
    if text_name is None or text_type not in tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise OptionError(
            f"the language model of {architecture} ({text_type}) is not one that transformers has "
            "as a ...ForCausalLM: vlcore new cannot write its plugin"
        )
    processor = _processor_class(model_type, architecture)
    image_class = _image_processor_class(model_type, architecture)
    vision_prefixes, text_prefixes = _prefixes(model, text_name, architecture)
    source = inspect.getsource(processor)
    named_tokens = _named_tokens(source)
    placeholder = _placeholder(source, named_tokens)
    return TransformersFamily(
        config_class=config_class,
        model_type=model_type,
        architecture=architecture,
        inner_class=type(inner).__name__,
        inner_module=type(inner).__module__,
        text_name=text_name,
        requires=needed_features({"model_type": model_type}),
        feature_inputs=_feature_inputs(inner),
        has_tower=_has_tower(inner),
        vision_prefixes=vision_prefixes,
        text_prefixes=text_prefixes,
        image_processor=image_class.__name__,
        processor=processor.__name__,
        image_sizes=_image_sizes(image_class),
        processor_options=_processor_options(processor, model.config),
        named_tokens=named_tokens,
        placeholder=placeholder,
        row_token=named_tokens.get("image_token", placeholder),
        row_key=next((key for key in _ROW_KEYS if hasattr(model.config, key)), _ROW_KEYS[0]),
        more_tokens=tuple(dict.fromkeys(re.findall(r"\"(<[^\s\"{}]+>)\"", source))),
        config=settings,
    )


def _config_class_of(model_type: str) -> str:
    from transformers.models.auto import configuration_auto

    tables: Any = configuration_auto
    return str(tables.CONFIG_MAPPING_NAMES.get(model_type, model_type))


def _build(model_class: Any, config_class: Any, settings: Mapping[str, Any], name: str) -> Any:
    """Build the tiny model without weights; or the one of the default configuration."""
    import torch

    errors = []
    for values in (settings, {}):
        try:
            with torch.device("meta"):
                return model_class(config_class(**values))
        except Exception as error:  # a size that does not fit another one, for example
            errors.append(f"{type(error).__name__}: {error}")
    raise OptionError(f"transformers cannot build the model of {name}: {errors[-1]}")


def _has_tower(inner: Any) -> bool:
    """Try to encode two tiles, given nothing but pixels."""
    import torch

    size: Any = getattr(getattr(inner.config, "vision_config", None), "image_size", EDGE)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    try:
        with torch.inference_mode(), torch.device("meta"):
            rows = inner.get_image_features(
                pixel_values=torch.empty(2, 3, height, width), return_dict=True
            ).pooler_output
    except Exception:  # it needs more than pixels, or pixels of another shape
        return False
    return isinstance(rows, torch.Tensor) and rows.ndim == 3 and len(rows) == 2


def _prefixes(
    model: Any, text_name: str, architecture: str
) -> tuple[tuple[Mapping[str, str], ...], tuple[Mapping[str, str], ...]]:
    """Find the prefixes of the layouts in which transformers saves a class, old and new."""
    from transformers.core_model_loading import revert_weight_conversion

    state = model.state_dict()
    saved = {
        id(tensor): name for name, tensor in revert_weight_conversion(model, dict(state)).items()
    }
    text = f"model.{text_name}."
    vision: list[dict[str, str]] = [{}, {}]
    language: list[dict[str, str]] = [{}, {}]
    for key, tensor in state.items():
        if id(tensor) not in saved:
            raise OptionError(
                f"transformers saves {key} of {architecture} in another form, and not only under "
                "another name: vlcore new cannot write its plugin"
            )
        part, target, prefixes = _part_of(key, text)
        rest = key.removeprefix(part)
        for layout, name in enumerate((saved[id(tensor)], key)):
            (language if prefixes == "text" else vision)[layout][name.removesuffix(rest)] = target
    return _distinct(vision), _distinct(language)


def _part_of(key: str, text: str) -> tuple[str, str, str]:
    """Return the prefix of a key, the prefix that it gets, and what it belongs to."""
    if key.startswith(text):
        return text, "model.", "text"
    if key.startswith("lm_head."):
        return "lm_head.", "lm_head.", "text"
    child = key.removeprefix("model.")
    name, dot, _ = child.partition(".")
    return f"model.{name}{dot}", f"{name}{dot}", "vision"


def _distinct(layouts: list[dict[str, str]]) -> tuple[Mapping[str, str], ...]:
    old, new = (dict(sorted(each.items(), key=lambda item: -len(item[0]))) for each in layouts)
    return (new,) if old == new else (new, old)


def _processor_class(model_type: str, architecture: str) -> Any:
    from transformers.models.auto import processing_auto

    tables: Any = processing_auto
    name = tables.PROCESSOR_MAPPING_NAMES.get(model_type)
    return _usable_class([name], "processor", architecture)


def _image_processor_class(model_type: str, architecture: str) -> Any:
    from transformers.models.auto import image_processing_auto

    tables: Any = image_processing_auto
    names = tables.IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}
    choices = [names.get("pil"), names.get("torchvision")]
    return _usable_class(choices, "image processor", architecture)


def _usable_class(names: Sequence[str | None], what: str, architecture: str) -> Any:
    """Return the first class of transformers whose packages are installed."""
    import transformers

    for name in filter(None, names):
        found = getattr(transformers, name, None)
        if found is not None and not getattr(found, "is_dummy", False):
            return found
    raise OptionError(
        f"the {what} of {architecture} ({', '.join(filter(None, names)) or 'without a name'}) is "
        "missing, or needs a package that is not installed, such as torchvision"
    )


def _feature_inputs(inner: Any) -> tuple[str, ...]:
    parameters = inspect.signature(inspect.unwrap(inner.get_image_features)).parameters.values()
    named = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
    return tuple(name for name in named if not name.startswith("vision_feature"))


def _image_sizes(image_class: Any) -> dict[str, Any]:
    """Return tiny sizes for the settings of an image processor, of the form of its defaults."""
    sizes: dict[str, Any] = {}
    for key in ("size", "crop_size", "max_image_size"):
        value = getattr(image_class, key, None)
        if isinstance(value, Mapping):
            sizes[key] = dict.fromkeys(value, EDGE)
    return sizes


def _processor_options(processor: Any, config: Any) -> dict[str, Any]:
    """Return the settings of a processor that are numbers or have no default.

    They have the values of the settings of the same name in the configuration, if there are any.
    """
    parts = {*processor.get_attributes(), "chat_template"}
    values = config.to_dict()
    visual = values.get("vision_config") or {}
    options: dict[str, Any] = {}
    for name, parameter in inspect.signature(processor.__init__).parameters.items():
        default = parameter.default
        is_number = isinstance(default, int) and not isinstance(default, bool)
        if name not in parts and (default is None or is_number):
            value = values.get(name, visual.get(name, default))
            options[name] = value if isinstance(value, int | str) else default
    return options


def _named_tokens(source: str) -> dict[str, str]:
    """Find the tokens that a processor reads from its tokenizer, and invent their texts."""
    names = re.findall(r"tokenizer\.(\w+_token)\b", source)
    names += re.findall(r"getattr\(\s*tokenizer,\s*\"(\w+_token)\"", source)
    names = [name for name in dict.fromkeys(names) if name not in _OWN_TOKENS]
    return {name: f"<{name.removesuffix('_token')}>" for name in names}


def _placeholder(source: str, named_tokens: Mapping[str, str]) -> str:
    """Return the text of the token that a processor calls its ``image_token``."""
    found = re.search(r"self\.image_token = tokenizer\.(\w+_token)\b", source)
    if found and found[1] in named_tokens:
        return named_tokens[found[1]]
    return named_tokens.get("image_token", "<image>")

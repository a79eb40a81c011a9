"""A family of vision-language models that transformers ships, as a new plugin needs to know it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlcore.cli.new.tiny_config import EDGE, add_tiny_sections, tiny_settings
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
    text_name: str
    """The attribute of the language model in it."""
    has_causal_lm: bool
    """Whether transformers has the language model as a ``…ForCausalLM``."""
    requires: tuple[str, ...]
    """Features of ``LanguageModel.requires``."""
    feature_inputs: tuple[str, ...]
    """What the class reads of the processor's outputs to encode images."""
    has_tower: bool
    """Whether tiles are encoded independently of each other, and from pixels alone."""
    vision_prefixes: tuple[str, ...]
    """Prefixes of the tensors of the vision encoder and the projector, in all layouts."""
    text_prefixes: Mapping[str, str]
    """Prefixes of the language model's tensors in all layouts, and those in its architecture."""
    num_layouts: int
    """Number of layouts in which transformers has saved the family."""
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
    text_config = model.config.get_text_config()
    is_known = any(
        type(text_config) in known
        for known in (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_MAPPING)
    )
    requires = needed_features({"model_type": model_type})
    if hasattr(inner, "get_rope_index"):
        requires.setdefault("mrope", "get_rope_index")
    if text_name is None or not is_known or "cross_attention" in requires:
        raise OptionError(
            f"the language model of {architecture} ({type(text_config).__name__}) does not read "
            "images as embeddings in its prompt, or is no model of its own in transformers: "
            "vlcore new cannot write its plugin"
        )
    if "mrope" in requires:
        add_tiny_sections(settings, text_config.to_dict())
    processor = _processor_class(model_type, architecture)
    image_class = _image_processor_class(model_type, architecture)
    vision_prefixes, text_prefixes, num_layouts = _prefixes(model, text_name, architecture)
    source = inspect.getsource(processor)
    named_tokens = _named_tokens(source)
    placeholder = _placeholder(source, named_tokens)
    return TransformersFamily(
        config_class=config_class,
        model_type=model_type,
        architecture=architecture,
        inner_class=type(inner).__name__,
        text_name=text_name,
        has_causal_lm=type(text_config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        requires=tuple(requires),
        feature_inputs=_feature_inputs(inner),
        has_tower=_has_tower(inner),
        vision_prefixes=vision_prefixes,
        text_prefixes=text_prefixes,
        num_layouts=num_layouts,
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
) -> tuple[tuple[str, ...], dict[str, str], int]:
    """Find the prefixes of the layouts in which transformers saves a class, old and new.

    Tensors that transformers saves in another form are stored next to others of their module.
    """
    from transformers.core_model_loading import revert_weight_conversion

    state = model.state_dict()
    saved = {id(value): name for name, value in revert_weight_conversion(model, state).items()}
    text = f"model.{text_name}."
    layouts: list[dict[str, str]] = [{}, {}]
    missing = set()
    for key, tensor in state.items():
        part = _part_of(key, text)
        missing.add(part)
        for layout, name in zip(layouts, (saved.get(id(tensor)), key), strict=True):
            rest = key.removeprefix(part)
            if name is not None and name.endswith(rest):
                layout[name.removesuffix(rest)] = part
    if unknown := missing - set(layouts[0].values()):
        raise OptionError(
            f"transformers saves {', '.join(sorted(unknown))} of {architecture} in another form, "
            "and not only under another name: vlcore new cannot write its plugin"
        )
    targets = {text: "model.", "lm_head.": "lm_head."}
    merged = layouts[1] | layouts[0]
    prefixes = sorted(merged, key=lambda prefix: (-len(prefix), prefix))
    return (
        tuple(sorted(prefix for prefix in prefixes if merged[prefix] not in targets)),
        {prefix: targets[merged[prefix]] for prefix in prefixes if merged[prefix] in targets},
        1 if layouts[0] == layouts[1] else 2,
    )


def _part_of(key: str, text: str) -> str:
    """Return the prefix of a key that names its module."""
    if key.startswith((text, "lm_head.")):
        return text if key.startswith(text) else "lm_head."
    name, dot, _ = key.removeprefix("model.").partition(".")
    return f"model.{name}{dot}"


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
    return tuple(name for name in named if not name.startswith(("self", "vision_feature")))


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

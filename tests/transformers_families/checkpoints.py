"""A tiny random model of each family with its processor, saved as released checkpoints are."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, ProcessorMixin
from transformers.models.auto import image_processing_auto, processing_auto
from transformers.models.auto.auto_mappings import VIDEO_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from vl_plugin_transformers.families import FAMILIES as SERVED
from vl_plugin_transformers.frames import FrameProcessor

from transformers_families.configurations import tiny_config
from transformers_families.families import FAMILIES, TinyFamily
from transformers_families.tokenizer import build_tokenizer

_IMAGE_PROCESSORS: Mapping[str, Any] = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"]
_PROCESSORS: Mapping[str, str] = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]
_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' }}
{%- if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' %}{{ 'PLACEHOLDER' }}
{%- elif part['type'] == 'video' %}{{ 'VIDEO' }}{% else %}{{ part['text'] }}{% endif -%}
{%- endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""


@dataclass(frozen=True)
class TinyCheckpoint:
    """A saved checkpoint, and the objects of transformers that it was saved from."""

    name: str
    family: TinyFamily
    directory: Path
    model: Any
    processor: Any
    row_id: int
    """The token of an image embedding."""
    row_ids: frozenset[int]
    """The tokens of the embeddings of images and videos."""


def write_checkpoint(
    directory: Path, name: str, seed: int = 0, *, text_type: str | None = None
) -> TinyCheckpoint:
    """Draw and save a model of the family, with everything that a released checkpoint has.

    Args:
        directory: The directory to make.
        name: The family's model type.
        seed: The seed of the weights.
        text_type: The model type of the language model, where it is not the family's default.
    """
    family = FAMILIES[name]
    processor = build_processor(name)
    tokenizer = processor.tokenizer
    row_token = family.row_token or family.tokens.get("image_token") or processor.image_token
    row_id = int(tokenizer.convert_tokens_to_ids(str(row_token)))
    model = build_model(name, _config(name, processor, row_id, text_type), seed)
    processor.chat_template = ("{{- bos_token }}" if family.writes_bos else "") + _TEMPLATE.replace(
        "PLACEHOLDER", family.placeholder or str(processor.image_token)
    ).replace("VIDEO", family.video_placeholder)
    directory.mkdir(parents=True)
    model.save_pretrained(directory)
    save_processor(processor, directory, is_nested="video_processor" not in vars(processor))
    row_ids = {row_id}
    if family.videos:
        settings = directory / "video_preprocessor_config.json"
        kind = {"video_processor_type": SERVED[name].video}
        settings.write_text(json.dumps({**family.videos, **kind}))
        processor.video_processor = _build_video_processor(name)
        row_ids.add(int(tokenizer.convert_tokens_to_ids(processor.video_token)))
    return TinyCheckpoint(name, family, directory, model, processor, row_id, frozenset(row_ids))


def build_processor(name: str) -> Any:
    """Return the family's processor, with Pillow's image processor where there is one."""
    family = FAMILIES[name]
    base = _class(family.processor_class or _PROCESSORS[name])
    processor_class = _without_optional_parts(base)
    parts: dict[str, Any] = dict.fromkeys(base.get_attributes())
    parts["image_processor"] = _build_image_processor(name, family)
    parts["tokenizer"] = build_tokenizer(family.tokens, has_bos=family.has_bos)
    if "torchvision" in family.requires and "video_processor" in parts:
        video = VIDEO_PROCESSOR_MAPPING_NAMES.get(name) or {}
        parts["video_processor"] = _class(video["torchvision"])() if video else None
    return processor_class(**parts, **copy.deepcopy(dict(family.processor)))


def _build_video_processor(name: str) -> Any:
    """Return transformers' processor of videos or, without torchvision, that of the plugin.

    A test with torchvision compares the two.
    """
    class_name, settings = SERVED[name].video, dict(FAMILIES[name].videos)
    if importlib.util.find_spec("torchvision") is not None:
        return _class(class_name).from_dict(settings)
    return _PluginVideoProcessor(class_name, settings)


class _PluginVideoProcessor(FrameProcessor):
    """The plugin's processor of frames, with the interface of transformers' processors."""

    def __call__(self, videos: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        processed = [super(_PluginVideoProcessor, self).__call__(frames) for frames in videos]
        outputs: dict[str, Any] = {
            key: torch.cat([each[key] for each in processed]) for key in processed[0]
        }
        return outputs | {"video_metadata": options["video_metadata"]}


def save_processor(processor: Any, directory: Path, *, is_nested: bool) -> None:
    """Save the processor as transformers 5 does (nested), or as older releases did."""
    processor.tokenizer.save_pretrained(directory)
    values = json.loads(processor.to_json_string())
    images = values.pop("image_processor")
    for part in ("video_processor", "feature_extractor", "audio_processor"):
        values.pop(part, None)
    images["image_processor_type"] = images["image_processor_type"].removesuffix("Pil")
    if is_nested:
        values["image_processor"] = images
    else:
        (directory / "preprocessor_config.json").write_text(json.dumps(images, indent=1))
    (directory / "processor_config.json").write_text(json.dumps(values, indent=1))
    (directory / "chat_template.jinja").write_text(processor.chat_template)


def build_model(name: str, config: Any, seed: int) -> Any:
    """Draw a model whose embeddings and logits differ clearly from token to token."""
    family = FAMILIES[name]
    architecture = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[name]
    architecture = architecture if isinstance(architecture, str) else architecture[0]
    model_class = getattr(transformers, architecture)
    torch.manual_seed(seed)
    try:
        model = model_class(config)
    except ValueError as error:
        if "scaled_dot_product" not in str(error):
            raise
        config._attn_implementation = "eager"
        model = model_class(config)
    model.eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, family.scale)
            else:
                parameter.add_(torch.randn_like(parameter) / 10)
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        if head is not None and head.weight is embeddings.weight:  # else each token repeats itself
            embeddings.weight.div_(20)
    model.generation_config.bos_token_id = 1
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    return model


def _config(name: str, processor: Any, row_id: int, text_type: str | None) -> Any:
    family, tokenizer = FAMILIES[name], processor.tokenizer
    vocabulary = tokenizer.get_vocab()
    changes = copy.deepcopy(dict(family.config))
    for key, default in CONFIG_MAPPING[name](**dict(family.arguments)).to_dict().items():
        stem = key.removesuffix("_id").removesuffix("_index")
        if key.startswith(("bos_", "eos_", "pad_")) or not stem.endswith("_token"):
            continue
        token = family.tokens.get(stem) or getattr(processor, stem, None)
        if stem == "image_token":
            changes[key] = row_id
        elif isinstance(token, str) and token in vocabulary:
            changes[key] = vocabulary[token]
        elif isinstance(default, int) and not isinstance(default, bool):
            changes[key] = vocabulary["<video>"]
    for key, tokens in family.token_ids.items():
        ids = tokenizer.convert_tokens_to_ids(tokens)
        changes[key] = ids
    arguments = copy.deepcopy(dict(family.arguments))
    if text_type:
        arguments["text_config"] = {"model_type": text_type}
    return tiny_config(name, changes, vocabulary_size=640, arguments=arguments)


def _build_image_processor(name: str, family: TinyFamily) -> Any:
    names: Mapping[str, str] = dict(_IMAGE_PROCESSORS.get(name) or {})
    if family.image_class:
        names = {"torchvision": family.image_class, "pil": family.image_class + "Pil"}
    kind = "pil" if "pil" in names else "torchvision"
    return _class(names[kind])(**copy.deepcopy(dict(family.images)))


def _class(name: str) -> Any:
    return getattr(transformers, name)


def _without_optional_parts(base: type[ProcessorMixin]) -> Any:
    """Return a processor class that does without a part such as a video processor."""

    def check_argument_for_proper_class(self: Any, name: str, part: Any) -> Any:
        return part and base.check_argument_for_proper_class(self, name, part)  # type: ignore[no-untyped-call]

    return type(
        base.__name__, (base,), {"check_argument_for_proper_class": check_argument_for_proper_class}
    )

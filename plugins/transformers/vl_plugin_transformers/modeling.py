"""The multimodal class of a checkpoint without weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import CONFIG_MAPPING
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from vl_plugin_transformers.families import FAMILIES, Family
from vlcore import Checkpoint, ConfigError, PluginError, empty_weights

_COMPUTED_SUFFIX = ".rotary_emb.inv_freq"
_TEXT_NAMES = ("language_model", "text_model")
_LENGTHS = ("num_hidden_layers", "num_layers", "depth")


class EmptyModel:
    """The multimodal class without weights.

    Args:
        checkpoint: the checkpoint, whose ``config.json`` configures the class.

    Raises:
        ConfigError: transformers cannot build the class from the configuration.
        PluginError: a package that the class needs is not installed.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.family: Family = FAMILIES[checkpoint.config["model_type"]]
        _check_lengths(checkpoint)
        self.config = read_config(checkpoint)
        try:
            with empty_weights():
                self.module = build(self.family, self.config)
        except ImportError as error:
            names = " ".join(self.family.packages)
            raise PluginError(
                f"{self.family.architecture} needs packages that are not installed: "
                f"{f'pip install {names}' if names else error}"
            ) from error
        except Exception as error:
            raise ConfigError(
                f"transformers cannot build {self.family.architecture} from config.json of "
                f"{checkpoint.name}: {type(error).__name__}: {error}"
            ) from error
        self.inner: Any = self.module.model
        """The module that holds the vision encoder and the language model."""
        self.text_name = text_name(self.inner)
        self.keys = _names(checkpoint, self.module)
        """The name in the class of each stored tensor, before tensors are merged or split."""

    @property
    def num_deepstack_layers(self) -> int:
        """The number of decoder layers after which something is added to image embeddings."""
        if "deepstack" not in self.family.requires:
            return 0
        vision = self.config.vision_config
        return sum(index < vision.depth for index in vision.deepstack_visual_indexes)

    @property
    def text_prefix(self) -> str:
        """What the names of the language model's tensors begin with."""
        return f"model.{self.text_name}."

    def is_text(self, key: str) -> bool:
        """Whether a tensor of the class is one of the language model."""
        return key.startswith((self.text_prefix, "lm_head."))

    def remove(self, *names: str) -> None:
        """Remove modules that are not needed."""
        for name in names:
            setattr(self.inner, name, None)


def read_config(checkpoint: Checkpoint) -> Any:
    """Read ``config.json`` as the configuration of transformers.

    Raises:
        ConfigError: transformers rejects the values.
    """
    values = {key: value for key, value in checkpoint.config.items() if key != "auto_map"}
    try:
        return CONFIG_MAPPING[values["model_type"]].from_dict(values)
    except Exception as error:
        raise ConfigError(
            f"transformers cannot read config.json of {checkpoint.name} as "
            f"{values['model_type']!r}: {type(error).__name__}: {error}"
        ) from error


def build(family: Family, config: Any) -> Any:
    """Build the class of a family, with the fastest attention that all of its parts support."""
    model_class = getattr(transformers, family.architecture)
    try:
        config._attn_implementation = "sdpa"
        return model_class(config).eval()
    except ValueError:  # a part of it has no scaled_dot_product_attention
        config._attn_implementation = "eager"
        return model_class(config).eval()


def text_name(inner: Any) -> str:
    """Return the name of the language model in the module that holds all parts."""
    return next(name for name in _TEXT_NAMES if hasattr(inner, name))


def _names(checkpoint: Checkpoint, module: Any) -> dict[str, str]:
    """Rename the stored tensors as transformers does."""
    steps = get_model_conversion_mapping(module)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    expected = module.state_dict()
    return {
        name: rename_source_key(name, renamings, [], "model", expected)[0]
        for name in checkpoint.tensor_names
        if not name.endswith(_COMPUTED_SUFFIX)
    }


def _check_lengths(checkpoint: Checkpoint) -> None:
    """Refuse a number of layers that no tensors can fill, because building them takes long.

    Raises:
        ConfigError: config.json states more layers than the checkpoint has tensors.
    """
    num_tensors = len(checkpoint.tensor_names)
    parts = [checkpoint.config, *checkpoint.config.values()]
    for part in parts:
        for key in _LENGTHS if isinstance(part, Mapping) else ():
            if isinstance(part.get(key), int) and part[key] > num_tensors:
                raise ConfigError(
                    f"config.json of {checkpoint.name}: {key} is {part[key]}, but the checkpoint "
                    f"has only {num_tensors} tensors"
                )

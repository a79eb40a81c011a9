"""The multimodal class of a checkpoint without weights, and where its tensors are stored."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from vl_plugin_transformers.families import FAMILIES, Family
from vlcore import Checkpoint, ConfigError, PluginError, TensorError, empty_weights

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
            self.module = _build(self.family, self.config)
        except ImportError as error:
            raise PluginError(
                f"{self.family.architecture} needs packages that are not installed: pip install "
                f"{' '.join(self.family.packages)}"
            ) from error
        except Exception as error:
            raise ConfigError(
                f"transformers cannot build {self.family.architecture} from config.json of "
                f"{checkpoint.name}: {type(error).__name__}: {error}"
            ) from error
        self.inner: Any = self.module.model
        """The module that holds the vision encoder and the language model."""
        self.text_name = next(name for name in _TEXT_NAMES if hasattr(self.inner, name))
        transforms = get_model_conversion_mapping(self.module)
        self._renamings = [step for step in transforms if isinstance(step, WeightRenaming)]
        self._converters = [step for step in transforms if isinstance(step, WeightConverter)]

    @property
    def text_prefix(self) -> str:
        """What the names of the language model's tensors begin with."""
        return f"model.{self.text_name}."

    @cached_property
    def names(self) -> dict[str, str]:
        """The name in the class of each stored tensor, before tensors are merged or split."""
        keys = self.module.state_dict()
        return {
            name: rename_source_key(name, self._renamings, [], "model", keys)[0]
            for name in self.checkpoint.tensor_names
            if not name.endswith(".rotary_emb.inv_freq")
        }

    def is_text(self, key: str) -> bool:
        """Whether a tensor of the class is one of the language model."""
        return key.startswith((self.text_prefix, "lm_head."))

    def keep(self, names: Iterable[str]) -> None:
        """Remove all modules next to the language model except some."""
        for name, _ in list(self.inner.named_children()):
            if name not in names:
                setattr(self.inner, name, None)

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Fill the modules that have been kept, and prepare them for inference.

        Raises:
            TensorError: tensors are missing or misshapen.
        """
        expected = self.module.state_dict()
        state = self._read(expected, device, dtype)
        name = self.checkpoint.name
        if missing := sorted(expected.keys() - state.keys()):
            raise TensorError(
                f"{name} lacks {len(missing)} tensor(s) that config.json asks for: "
                f"{', '.join(missing[:20])}"
            )
        for key, value in expected.items():
            if state[key].shape != value.shape:
                raise TensorError(
                    f"{name} gives {key} the shape {list(state[key].shape)}; config.json asks for "
                    f"{list(value.shape)}"
                )
        self.module.load_state_dict({key: state[key] for key in expected}, assign=True)
        self.module.requires_grad_(False).eval()
        for module in self.module.modules():  # buffers that are computed and not stored
            for key, buffer in module.named_buffers(recurse=False):
                setattr(module, key, buffer.to(device))

    def _read(
        self, expected: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Read the tensors of some keys, and convert those that the class stores otherwise."""
        by_pattern = {
            pattern: step for step in self._converters for pattern in step.source_patterns
        }
        plain: dict[str, str] = {}
        converted: dict[str, tuple[str, str]] = {}
        steps: dict[str, Any] = {}
        for name in self.names:
            key, pattern = rename_source_key(
                name, self._renamings, self._converters, "model", dict(expected)
            )
            if key not in expected and name in expected:
                key, pattern = name, None
            if key not in expected:
                continue
            if pattern is None:
                plain[name] = key
            else:
                converted[name] = (key, pattern)
                steps.setdefault(key, copy.deepcopy(by_pattern[pattern]))
        state: dict[str, Tensor] = {}
        names = [*plain, *converted]
        for name, tensor in self.checkpoint.tensors(names, device=device, dtype=dtype):
            if name in plain:
                state[plain[name]] = tensor
            else:
                key, pattern = converted[name]
                steps[key].add_tensor(key, name, pattern, tensor)
        for key, step in steps.items():
            for target, value in step.convert(key, model=self.module, config=self.config).items():
                state[target] = value[0] if isinstance(value, list) else value
        return state


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


def _build(family: Family, config: Any) -> Any:
    """Build the class without weights, with the fastest attention that it supports."""
    model_class = getattr(transformers, family.architecture)
    with empty_weights():
        try:
            config._attn_implementation = "sdpa"
            return model_class(config).eval()
        except ValueError:  # a part of it has no scaled_dot_product_attention
            config._attn_implementation = "eager"
            return model_class(config).eval()


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

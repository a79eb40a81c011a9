"""Where a CLIP vision encoder is stored: its sizes, image processor and tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any, Self

import torch
from torch import nn

from vlcore._utils.device_map import DeviceMap, MaxMemory, dispatch, plan_devices
from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.checkpoint.renaming import renamed
from vlcore.checkpoint.tensor_source import TensorSource
from vlcore.checkpoint.weights import empty_weights
from vlcore.clip.images import ClipProcessor
from vlcore.clip.tower import ClipConfig, ClipTower
from vlcore.errors import CheckpointNotFoundError, ConfigError, TensorError

_TOWER_KEYS = re.compile(r"embeddings\.|pre_layrnorm\.|encoder\.layers\.")
_PREFIXES = ("vision_model.", "")
"""Prefixes of names in the file of an encoder alone; transformers 5 omits one that others have."""


@dataclass(frozen=True)
class ClipSource:
    """A CLIP vision encoder of which no tensor has been read yet."""

    config: ClipConfig
    processor: ClipProcessor
    checkpoint: Checkpoint
    """The checkpoint that holds the encoder's tensors."""
    prefix: str
    """The prefix of the encoder's tensor names in that checkpoint."""

    @classmethod
    def inside(
        cls,
        checkpoint: Checkpoint,
        config: Mapping[str, Any],
        processor: Mapping[str, Any],
        prefixes: Sequence[str],
    ) -> Self:
        """Find a vision encoder among the tensors of a checkpoint.

        Args:
            checkpoint: the checkpoint that holds the encoder.
            config: its CLIP or CLIP vision configuration.
            processor: the configuration of its image processor.
            prefixes: possible prefixes of its tensor names; the first one that exists applies.

        Raises:
            ConfigError: the configuration is of another kind of encoder, or impossible.
            TensorError: the checkpoint holds no encoder under these prefixes.
        """
        clip = ClipConfig.from_json(config, f"config.json of {checkpoint.name}")
        prefix = _prefix_of(checkpoint, prefixes)
        if prefix is None:
            raise TensorError(
                f"{checkpoint.name} holds no CLIP vision weights "
                f"({prefixes[0]}embeddings.class_embedding)"
            )
        return cls(clip, _processor(processor, clip, checkpoint), checkpoint, prefix)

    @classmethod
    def named(cls, checkpoint: Checkpoint, reference: str, prefixes: Sequence[str]) -> Self:
        """Find the vision encoder to which a checkpoint refers; a copy inside it takes precedence.

        Args:
            checkpoint: the checkpoint that refers to the encoder.
            reference: a directory relative to the checkpoint, or a Hub repo id, whose files
                describe the encoder.
            prefixes: possible prefixes of the encoder's tensor names in the checkpoint itself.

        Raises:
            CheckpointNotFoundError: ``reference`` is neither.
            ConfigError: the configuration is of another kind of encoder, or impossible.
            TensorError: neither checkpoint holds the tensors.
        """
        related = _related(checkpoint, reference)
        clip = ClipConfig.from_json(related.config, f"the vision encoder {related.name}")
        processor = _processor(related.read_json("preprocessor_config.json") or {}, clip, related)
        for holder, names in ((checkpoint, prefixes), (related, _PREFIXES)):
            prefix = _prefix_of(holder, names)
            if prefix is not None:
                return cls(clip, processor, holder, prefix)
        raise TensorError(
            f"neither {checkpoint.name} nor the vision encoder {related.name} holds CLIP vision "
            "weights (…embeddings.class_embedding)"
        )

    def load_tower(
        self,
        layer: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        device_map: DeviceMap | None = None,
        max_memory: MaxMemory | None = None,
    ) -> ClipTower:
        """Load the vision encoder up to a hidden state; later layers are not read.

        Args:
            layer: index of the hidden state; 0 is the embeddings, negative counts from the end.
            device: the device of the encoder.
            dtype: the dtype of its weights.
            device_map: distributes the encoder over several devices.
            max_memory: the maximum memory of the encoder on each device.

        Raises:
            ConfigError: the encoder has no such hidden state.
            OptionError: the encoder cannot be distributed as requested.
            TensorError: tensors are missing, unexpected or misshapen.
        """
        num_layers = layer if layer >= 0 else layer + self.config.num_hidden_layers + 1
        if not 0 <= num_layers <= self.config.num_hidden_layers:
            raise ConfigError(
                f"{self.checkpoint.name}: hidden state {layer} of the vision encoder is requested, "
                f"which has {self.config.num_hidden_layers} layers"
            )
        num_tensors = len(self.checkpoint.tensor_names)
        if num_layers > num_tensors:  # building them would take very long
            raise ConfigError(
                f"{self.checkpoint.name}: num_hidden_layers of the vision encoder is "
                f"{self.config.num_hidden_layers}, but there are only {num_tensors} tensors"
            )
        with empty_weights():
            tower = ClipTower(self.config, num_layers)
        sources = self._sources(tower, num_layers)
        if device_map is None:
            self.checkpoint.load_module(tower, sources, device=device, dtype=dtype)
            return tower
        plan = plan_devices(tower, device_map, max_memory, dtype=dtype, whole=ClipTower.whole)
        self.checkpoint.load_module(tower, sources, device=plan, dtype=dtype)
        dispatch(tower, plan, device)
        return tower

    def _sources(self, tower: ClipTower, num_layers: int) -> dict[str, TensorSource]:
        sources = module_sources(tower, self.checkpoint, {self.prefix: ""})
        if not self.prefix:  # the file may hold other modules: select the encoder's tensors
            sources = {key: value for key, value in sources.items() if _TOWER_KEYS.match(key)}
        skipped = (
            "embeddings.position_ids",
            "post_layernorm.",
            *(f"encoder.layers.{i}." for i in range(num_layers, self.config.num_hidden_layers)),
        )
        return {key: source for key, source in sources.items() if not key.startswith(skipped)}


def _related(checkpoint: Checkpoint, reference: str) -> Checkpoint:
    """Open the checkpoint of an encoder, also if its path is that of the machine of the training.

    Such a path is looked up in the checkpoint, without its first folders.
    """
    try:
        return checkpoint.related(reference)
    except CheckpointNotFoundError as error:
        parts = PureWindowsPath(reference).parts
        for start in range(1, len(parts)):
            folder = "/".join(parts[start:])
            if f"{folder}/config.json" in checkpoint.files:
                return checkpoint.related(folder)
        name = parts[-1] if parts else "encoder"
        raise CheckpointNotFoundError(
            f"{error}. If the path is that of another machine, put config.json and "
            f"preprocessor_config.json of the vision encoder into the folder {name!r} of "
            f"{checkpoint.name}, and its weights too unless the checkpoint has them"
        ) from error


def module_sources(
    module: nn.Module, checkpoint: Checkpoint, prefixes: Mapping[str, str]
) -> dict[str, TensorSource]:
    """List where the tensors of a module are stored in a checkpoint.

    The result has every tensor of the module, and every tensor of the checkpoint with one of the
    prefixes, so that ``Checkpoint.load_module`` reports both missing and unused tensors.

    Args:
        module: the module to be filled.
        checkpoint: the checkpoint that holds the tensors.
        prefixes: the prefix in the module for each prefix in the checkpoint.
    """
    required = {
        key: TensorSource(old + key.removeprefix(new))
        for key in module.state_dict()
        for old, new in prefixes.items()
        if key.startswith(new)
    }
    return required | renamed(checkpoint, prefixes)


def _prefix_of(checkpoint: Checkpoint, prefixes: Sequence[str]) -> str | None:
    for prefix in prefixes:
        if checkpoint.has_tensors(f"{prefix}embeddings.class_embedding"):
            return prefix
    return None


def _processor(
    config: Mapping[str, Any], clip: ClipConfig, checkpoint: Checkpoint
) -> ClipProcessor:
    where = f"the image processor of {checkpoint.name}"
    return ClipProcessor.from_json(config, clip.image_size, where)

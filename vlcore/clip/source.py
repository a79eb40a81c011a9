"""Where a CLIP tower lies: its sizes, its image processor and its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from vlcore._utils.device_map import DeviceMap, MaxMemory, dispatch, plan_devices
from vlcore.checkpoint.checkpoint import Checkpoint, renamed
from vlcore.checkpoint.tensor_source import TensorSource
from vlcore.checkpoint.weights import empty_weights
from vlcore.clip.images import ClipProcessor
from vlcore.clip.tower import ClipConfig, ClipTower
from vlcore.errors import ConfigError, TensorError

_TOWER_KEYS = re.compile(r"embeddings\.|pre_layrnorm\.|encoder\.layers\.")
_PREFIXES = ("vision_model.", "")
"""Before the names in a tower's own file; transformers 5 drops a level that releases have."""


@dataclass(frozen=True)
class ClipSource:
    """A CLIP tower of which no tensor has been read yet."""

    config: ClipConfig
    processor: ClipProcessor
    checkpoint: Checkpoint
    """Holds the tower's tensors."""
    prefix: str
    """Stands before the tower's names there."""

    @classmethod
    def inside(
        cls,
        checkpoint: Checkpoint,
        config: Mapping[str, Any],
        processor: Mapping[str, Any],
        prefixes: Sequence[str],
    ) -> Self:
        """Find a tower among the tensors of a checkpoint.

        Args:
            checkpoint: holds the tower.
            config: describes it, as a CLIP or CLIP vision configuration.
            processor: describes its image processor.
            prefixes: what may stand before its names; the first that does is taken.

        Raises:
            ConfigError: it is another kind of tower, or an impossible one.
            TensorError: the checkpoint holds none under these prefixes.
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
        """Find the tower that a checkpoint names; a copy inside the checkpoint wins.

        Args:
            checkpoint: names the tower.
            reference: a directory relative to it, or a hub id; its files describe the tower.
            prefixes: what may stand before the tower's names in the checkpoint itself.

        Raises:
            CheckpointNotFoundError: ``reference`` is neither.
            ConfigError: it is another kind of tower, or an impossible one.
            TensorError: neither place holds the tensors.
        """
        beside = checkpoint.related(reference)
        clip = ClipConfig.from_json(beside.config, f"the tower {beside.name}")
        processor = _processor(beside.read_json("preprocessor_config.json") or {}, clip, beside)
        for place, names in ((checkpoint, prefixes), (beside, _PREFIXES)):
            prefix = _prefix_of(place, names)
            if prefix is not None:
                return cls(clip, processor, place, prefix)
        raise TensorError(
            f"neither {checkpoint.name} nor the tower that it names holds CLIP vision weights "
            "(…embeddings.class_embedding)"
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
        """Load the tower up to a hidden state; what lies above it is not read.

        Args:
            layer: index of the hidden state; 0 is the embeddings, negative counts from the end.
            device: where the tower goes.
            dtype: of its weights.
            device_map: spreads the tower over several devices.
            max_memory: what it may use of each.

        Raises:
            ConfigError: the tower has no such layer.
            OptionError: it cannot be spread so.
            TensorError: tensors are missing, unexpected or misshapen.
        """
        num_layers = layer if layer >= 0 else layer + self.config.num_hidden_layers + 1
        if not 0 <= num_layers <= self.config.num_hidden_layers:
            raise ConfigError(
                f"{self.checkpoint.name}: hidden state {layer} of the tower is asked for, "
                f"which has {self.config.num_hidden_layers} layers"
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
        if not self.prefix:  # a whole file of somebody else's: take what is a tower's
            sources = {key: value for key, value in sources.items() if _TOWER_KEYS.match(key)}
        skipped = (
            "embeddings.position_ids",
            "post_layernorm.",
            *(f"encoder.layers.{i}." for i in range(num_layers, self.config.num_hidden_layers)),
        )
        return {key: source for key, source in sources.items() if not key.startswith(skipped)}


def module_sources(
    module: nn.Module, checkpoint: Checkpoint, prefixes: Mapping[str, str]
) -> dict[str, TensorSource]:
    """List what a module asks for and what a checkpoint has for it, under the checkpoint's names.

    ``Checkpoint.load_module`` then tells what is missing and what has no place.

    Args:
        module: what will be filled.
        checkpoint: where the tensors lie.
        prefixes: the module's prefix for each prefix of the checkpoint.
    """
    expected = {
        key: TensorSource(old + key.removeprefix(new))
        for key in module.state_dict()
        for old, new in prefixes.items()
        if key.startswith(new)
    }
    return expected | renamed(checkpoint, prefixes)


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

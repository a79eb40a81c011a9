"""Which linear layers of a model can be computed by another kernel, and which of them together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKEN_IDS = ((0, 1, 0), (1, 1, 0))


class LinearLayer(NamedTuple):
    """A linear layer, and where it is in the model."""

    parent: nn.Module
    name: str
    module: nn.Linear

    def replace(self, module: nn.Module) -> None:
        """Put another module in its place."""
        setattr(self.parent, self.name, module)


@dataclass(eq=False)
class _Usage:
    """How a forward pass uses a layer."""

    inputs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Each input, and a copy of its values at that time."""
    is_read_elsewhere: bool = False


class _ObservedLinear(nn.Linear):
    """A linear layer that records its inputs, and whether other code reads its weight or bias."""

    usage: _Usage

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        self.usage.inputs.append((input, input.clone()))
        return nn.functional.linear(
            input, cast("Tensor", self._parameters["weight"]), self._parameters["bias"]
        )

    def __getattribute__(self, name: str) -> Any:
        if name in ("weight", "bias"):
            object.__getattribute__(self, "usage").is_read_elsewhere = True
        return super().__getattribute__(name)


def find_linear_groups(model: PreTrainedModel) -> list[tuple[LinearLayer, ...]]:
    """Return the linear layers that can be replaced, those of the same input as one group.

    A short forward pass shows it, so that the names of layers do not matter. The layers of a group
    belong to one module, and were always given the same unchanged tensor. Not returned are layers
    with hooks, of derived classes, under several names, or whose weight is read other than by
    calling the layer, and those that the forward pass did not call, such as most experts.

    Args:
        model: a loaded transformers model.

    Raises:
        Exception: the forward pass fails.
    """
    layers = list(_plain_layers(model))
    with _observed(layers) as usages, torch.inference_mode():
        highest = len(cast("Tensor", model.get_input_embeddings().weight)) - 1
        token_ids = torch.tensor(_TOKEN_IDS, device=model.device).clamp(max=highest)
        model(input_ids=token_ids, use_cache=False)
    groups: list[list[int]] = []
    for index, usage in enumerate(usages):
        if not usage.inputs or usage.is_read_elsewhere:
            continue
        for group in groups:
            if _belong_together(layers, usages, group[0], index):
                group.append(index)
                break
        else:
            groups.append([index])
    return [tuple(layers[index] for index in group) for group in groups]


def _plain_layers(model: nn.Module) -> Iterator[LinearLayer]:
    found = [
        LinearLayer(parent, name, module)
        for parent in model.modules()
        for name, module in parent._modules.items()
        if type(module) is nn.Linear
    ]
    for layer in found:
        module = layer.module
        num_uses = sum(other.module is module for other in found)
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        if num_uses == 1 and not any(hooks) and "forward" not in vars(module):
            yield layer


@contextmanager
def _observed(layers: Sequence[LinearLayer]) -> Iterator[list[_Usage]]:
    usages = [_Usage() for _ in layers]
    try:
        for layer, usage in zip(layers, usages, strict=True):
            layer.module.__dict__["usage"] = usage
            layer.module.__class__ = _ObservedLinear
        yield usages
    finally:
        for layer in layers:
            layer.module.__class__ = nn.Linear
            layer.module.__dict__.pop("usage", None)


def _belong_together(
    layers: Sequence[LinearLayer], usages: Sequence[_Usage], first: int, second: int
) -> bool:
    one, other = layers[first], layers[second]
    if one.parent is not other.parent:
        return False
    if (one.module.bias is None) != (other.module.bias is None):
        return False
    own, others = usages[first].inputs, usages[second].inputs
    return len(own) == len(others) and all(
        a is b and torch.equal(before, after)
        for (a, before), (b, after) in zip(own, others, strict=True)
    )

"""Fills a module with the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from vlcore._utils.device_map import device_of
from vlcore.checkpoint.conversion import TensorConversion
from vlcore.checkpoint.tensor_source import TensorSource
from vlcore.checkpoint.weights import TensorInfo, move_buffers, shorten
from vlcore.errors import TensorError


class TensorStore(Protocol):
    """The tensors of a checkpoint by name."""

    @property
    def name(self) -> str:
        """The name of the checkpoint in messages."""

    def tensors(
        self,
        names: Iterable[str],
        *,
        device: torch.device | str,
        dtype: torch.dtype | None,
        progress: bool,
    ) -> Iterator[tuple[str, Tensor]]:
        """Read tensors one at a time."""

    def tensor_infos(self, names: Iterable[str]) -> dict[str, TensorInfo]:
        """Return the dtypes and shapes of tensors."""


def load_module(
    store: TensorStore,
    module: nn.Module,
    sources: Mapping[str, TensorSource],
    *,
    device: torch.device | str | Mapping[str, int | str | torch.device] = "cpu",
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> None:
    """Fill a module with tensors, as described at ``Checkpoint.load_module``."""
    check_module(store, module, sources)
    keys_by_tensor: dict[str, list[str]] = {}
    for key, source in sources.items():
        keys_by_tensor.setdefault(source.name, []).append(key)
    plan = device if isinstance(device, Mapping) else {"": device}
    buffers = module.named_buffers(remove_duplicate=False)
    computed = [name for name, _ in buffers if name not in sources]
    move_buffers(module, computed, partial(device_of, plan))
    read_device = "cpu" if isinstance(device, Mapping) else device
    state: dict[str, Tensor] = {}
    convert = TensorConversion(module, sources)
    for name, tensor in store.tensors(
        keys_by_tensor, device=read_device, dtype=dtype, progress=progress
    ):
        for key in keys_by_tensor[name]:
            for target, value in convert(key, sources[key].take(tensor)).items():
                state[target] = value.to(device_of(plan, target))
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()


def _check_names(store: TensorStore, found: Set[str], expected: Mapping[str, object]) -> None:
    """Check that there is something for each key, which may save downloading the weights."""
    if missing := sorted(expected.keys() - found):
        raise TensorError(
            f"{store.name} lacks {len(missing)} tensor(s) that config.json asks for: "
            f"{shorten(missing)}"
        )


def check_module(
    store: TensorStore, module: nn.Module, sources: Mapping[str, TensorSource]
) -> None:
    """Check that a module can be filled, as described at ``Checkpoint.check_module``."""
    expected = {key: value.shape for key, value in module.state_dict().items()}
    convert = TensorConversion(module, sources)
    _check_names(store, convert.targets | sources.keys(), expected)
    infos = store.tensor_infos(source.name for source in sources.values())
    shapes: dict[str, torch.Size] = {}
    origins: dict[str, str] = {}
    for key, source in sources.items():
        info = source.describe(infos[source.name])
        tensor = torch.empty(info.shape, dtype=info.dtype, device="meta")
        for target, value in convert(key, tensor).items():
            shapes[target], origins[target] = value.shape, source.name
    if unexpected := sorted(origins[target] for target in shapes.keys() - expected.keys()):
        raise TensorError(
            f"{store.name} holds {len(unexpected)} tensor(s) that the model of config.json does "
            f"not use: {shorten(unexpected)}"
        )
    _check_names(store, shapes.keys(), expected)
    if misshapen := [
        f"{origins[key]} gives {list(shapes[key])} where config.json asks for {list(shape)}"
        for key, shape in expected.items()
        if shapes[key] != shape
    ]:
        raise TensorError(f"wrong shapes in {store.name}: {shorten(misshapen)}")

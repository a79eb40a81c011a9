"""Fills a module with the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from vlcore._utils.device_map import device_of
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
    for name, tensor in store.tensors(
        keys_by_tensor, device=read_device, dtype=dtype, progress=progress
    ):
        for key in keys_by_tensor[name]:
            state[key] = sources[key].take(tensor).to(device_of(plan, key))
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()


def check_module(
    store: TensorStore, module: nn.Module, sources: Mapping[str, TensorSource]
) -> None:
    """Check that a module can be filled, as described at ``Checkpoint.check_module``."""
    expected = {key: value.shape for key, value in module.state_dict().items()}
    if missing := sorted(expected.keys() - sources.keys()):
        raise TensorError(
            f"{store.name} lacks {len(missing)} tensor(s) that config.json asks for: "
            f"{shorten(missing)}"
        )
    if unexpected := sorted(sources[key].name for key in sources.keys() - expected.keys()):
        raise TensorError(
            f"{store.name} holds {len(unexpected)} tensor(s) that the model of config.json does "
            f"not use: {shorten(unexpected)}"
        )
    infos = store.tensor_infos(source.name for source in sources.values())
    shapes = {key: source.describe(infos[source.name]).shape for key, source in sources.items()}
    if misshapen := [
        f"{source.name} gives {list(shapes[key])} where config.json asks for {list(expected[key])}"
        for key, source in sources.items()
        if shapes[key] != expected[key]
    ]:
        raise TensorError(f"wrong shapes in {store.name}: {shorten(misshapen)}")

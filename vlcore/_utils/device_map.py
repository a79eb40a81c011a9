"""Distribution of a module over several devices, with accelerate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from vlcore.errors import OptionError

DeviceMap = str | Mapping[str, int | str | torch.device]
"""``"auto"``, ``"balanced"`` or ``"sequential"``, or the device of each submodule by name."""
MaxMemory = Mapping[int | str, int | str]
"""Maximum memory by index of a CUDA device, or ``"cpu"``: bytes, or a size such as ``"4GiB"``."""

_STRATEGIES = ("auto", "balanced", "sequential")


def plan_devices(
    module: nn.Module,
    device_map: DeviceMap,
    max_memory: MaxMemory | None,
    *,
    dtype: torch.dtype,
    whole: Sequence[type[nn.Module]],
) -> dict[str, int | str | torch.device]:
    """Choose a device for each submodule of a module whose weights are not loaded yet.

    Args:
        module: the module to distribute.
        device_map: strategy, or the device of each submodule.
        max_memory: maximum memory on each device; ``None`` for the free memory.
        dtype: dtype of the weights.
        whole: classes of modules that must not be split.

    Raises:
        OptionError: the module does not fit, or ``device_map`` does not cover all submodules.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import check_device_map, get_balanced_memory

    names = [kind.__name__ for kind in whole]
    memory = None if max_memory is None else dict(max_memory)
    if isinstance(device_map, Mapping):
        plan = dict(device_map)
    elif device_map in _STRATEGIES:
        if device_map != "sequential":
            memory = get_balanced_memory(module, memory, no_split_module_classes=names, dtype=dtype)
        plan = infer_auto_device_map(
            module, max_memory=memory, no_split_module_classes=names, dtype=dtype
        )
    else:
        raise OptionError(
            f"device_map must be one of {', '.join(_STRATEGIES)}, or a mapping from submodules to "
            f"devices; it is {device_map!r}"
        )
    if on_disk := sorted(name or "all" for name, device in plan.items() if device == "disk"):
        raise OptionError(
            f"these submodules of {type(module).__name__} fit on no device: {', '.join(on_disk)}. "
            f"Raise max_memory (now {memory}), or use a smaller dtype"
        )
    try:
        check_device_map(module, plan)
    except ValueError as error:
        raise OptionError(f"device_map does not cover all submodules: {error}") from error
    return plan


def dispatch(
    module: nn.Module,
    plan: Mapping[str, int | str | torch.device],
    device: torch.device,
) -> None:
    """Make a module whose submodules are on several devices callable like any other.

    Args:
        module: the module, distributed according to ``plan``.
        plan: the device of each submodule. Weights on the CPU are copied to ``device`` when they
            are needed.
        device: device of the inputs and of the result.
    """
    from accelerate import dispatch_model

    # accelerate recognizes a CPU by the string only.
    main_device = "cpu" if device.type == "cpu" else device
    normalized = {
        name: "cpu" if torch.device(submodule_device).type == "cpu" else submodule_device
        for name, submodule_device in plan.items()
        if not isinstance(submodule_device, int)
    }
    dispatch_model(module, {**plan, **normalized}, main_device=main_device, force_hooks=True)


def device_of(plan: Mapping[str, int | str | torch.device], name: str) -> torch.device:
    """Return the device of a tensor, that of the innermost submodule of ``plan`` that holds it."""
    modules = [key for key in plan if not key or name == key or name.startswith(f"{key}.")]
    device = plan[max(modules, key=len)]
    return torch.device(f"cuda:{device}" if isinstance(device, int) else device)

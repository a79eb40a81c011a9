"""A module over several devices, for one that fits on none; accelerate moves what it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from vlcore.errors import OptionError

DeviceMap = str | Mapping[str, int | str | torch.device]
"""``"auto"``, ``"balanced"`` or ``"sequential"``, or the device of each part by name."""
MaxMemory = Mapping[int | str, int | str]
"""By number of a CUDA device, or ``"cpu"``: bytes, or a size such as ``"4GiB"``."""

_STRATEGIES = ("auto", "balanced", "sequential")


def plan_devices(
    module: nn.Module,
    device_map: DeviceMap,
    max_memory: MaxMemory | None,
    *,
    dtype: torch.dtype,
    whole: Sequence[type[nn.Module]],
) -> dict[str, int | str | torch.device]:
    """Choose a device for each part of a module that has no weights yet.

    Args:
        module: what will be spread.
        device_map: how, or the choice itself.
        max_memory: what may be used of each device; ``None`` for what is free.
        dtype: of the weights.
        whole: classes whose modules stay on one device.

    Raises:
        OptionError: it does not fit, or the choice leaves parts out.
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
            f"device_map must be one of {', '.join(_STRATEGIES)}, or give the device of each part "
            f"by name; it is {device_map!r}"
        )
    if on_disk := sorted(part or "all" for part, device in plan.items() if device == "disk"):
        raise OptionError(
            f"these parts of {type(module).__name__} fit on no device: {', '.join(on_disk)}. Give "
            f"more in max_memory (now {memory}), or use a smaller dtype"
        )
    try:
        check_device_map(module, plan)
    except ValueError as error:
        raise OptionError(f"device_map leaves parts out: {error}") from error
    return plan


def dispatch(
    module: nn.Module,
    plan: Mapping[str, int | str | torch.device],
    device: torch.device,
) -> None:
    """Let a module whose parts lie on several devices be called like any other.

    Args:
        module: its parts lie where ``plan`` says.
        plan: the device of each part; what lies on the CPU is moved to ``device`` when it runs.
        device: where inputs come from, and where the result goes.
    """
    from accelerate import dispatch_model

    # accelerate tells a CPU by the string.
    main_device = "cpu" if device.type == "cpu" else device
    places = {
        part: "cpu" if torch.device(place).type == "cpu" else place
        for part, place in plan.items()
        if not isinstance(place, int)
    }
    dispatch_model(module, {**plan, **places}, main_device=main_device, force_hooks=True)


def device_of(plan: Mapping[str, int | str | torch.device], name: str) -> torch.device:
    """The device of a tensor: that of the smallest part which holds it."""
    parts = [part for part in plan if not part or name == part or name.startswith(f"{part}.")]
    device = plan[max(parts, key=len)]
    return torch.device(f"cuda:{device}" if isinstance(device, int) else device)

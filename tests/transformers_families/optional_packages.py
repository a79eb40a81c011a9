"""Makes packages importable that only some families need, from a directory of unpacked wheels.

PyPI's torchvision is built for PyPI's torch, and with the CPU build of torch its compiled operators
do not load. What transformers uses of it is written in Python and works with any build of torch,
once the operators are declared for which torchvision registers a shape function on import.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import torch

_SHAPE_FUNCTION = re.compile(r'register_fake\("torchvision::(\w+)"\)')
_declared: list[Any] = []
"""An operator exists for as long as the library that declares it."""


def add_packages(directory: Path) -> None:
    """Make the packages of the directory importable, torchvision among them."""
    sys.path.append(str(directory))
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # the operators are missing
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare_operators(directory / "torchvision" / "_meta_registrations.py")
        importlib.import_module("torchvision")


def _declare_operators(source: Path) -> None:
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in _SHAPE_FUNCTION.findall(source.read_text(encoding="utf-8")):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)

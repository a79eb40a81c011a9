"""A model loader for vLLM that reads the tensors of a text view's index, and no others.

A linked text view refers to the files of its checkpoint, which hold the vision model's tensors as
well. vLLM's own loader reads all tensors of a file and fails at those it does not know. vLLM calls
:func:`register` in each of its processes, by the entry point of the group ``vllm.general_plugins``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from vlcore.engines.vllm.arguments import LOAD_FORMAT

_INDEX = "model.safetensors.index.json"


def register() -> None:
    """Register the loader with vLLM, unless it is registered already."""
    from vllm.model_executor import model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    if LOAD_FORMAT in model_loader._LOAD_FORMAT_TO_MODEL_LOADER:  # called twice in some processes
        return

    @model_loader.register_model_loader(LOAD_FORMAT)
    class TextViewLoader(DefaultModelLoader):  # type: ignore[misc]  # vLLM may be missing
        """Reads the tensors that the index of a text view lists."""

        def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, Tensor]]:
            del model
            return read_weights(Path(model_config.model))


def read_weights(view: Path) -> Iterator[tuple[str, Tensor]]:
    """Read the tensors of a text view, one by one, by its index.

    Args:
        view: directory of the text view.
    """
    from safetensors import safe_open

    weight_map: dict[str, str] = json.loads((view / _INDEX).read_text("utf-8"))["weight_map"]
    names: dict[str, list[str]] = {}
    for name, file_name in weight_map.items():
        names.setdefault(file_name, []).append(name)
    for file_name in sorted(names):
        with safe_open(view / file_name, "pt") as file:
            for name in names[file_name]:
                yield name, file.get_tensor(name)

"""A plugin for the demo model whose vision encoder and decoding steps take a stated time.

The time is slept, as if a GPU computed: it takes no processor time. It is read from a file before
each step, so that one running server can have several paces.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import torch
import vl_plugin_llava
from vl_plugin_llava import vl_chat_template

from vlcore import (
    Checkpoint,
    CheckpointFiles,
    DeviceMap,
    LanguageModel,
    MaxMemory,
    VisionModel,
    hookimpl,
)

__all__ = ["vl_chat_template"]

ARCHITECTURE = "PacedLlavaForCausalLM"
DEMO = Path(__file__).parents[1] / "demo" / "tiny-llava"


def install(directory: Path, checkpoint: Path) -> dict[str, str]:
    """Write the plugin's metadata and a checkpoint for it.

    Returns:
        The environment variables with which other processes find the plugin.
    """
    metadata = directory / "vl_plugin_paced-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vl-plugin-paced\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(f"[vlcore.architectures]\n{ARCHITECTURE} = _paced\n")
    shutil.copytree(DEMO, checkpoint)
    config = json.loads((DEMO / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"architectures": [ARCHITECTURE]}))
    set_pace(checkpoint)
    return {"PYTHONPATH": os.pathsep.join([str(directory), str(Path(__file__).parent)])}


def set_pace(checkpoint: Path, *, image_s: float = 0.0, step_s: float = 0.0) -> None:
    """Set how long an image and a step of the language model take, in seconds."""
    new = checkpoint / "pace.json.new"
    new.write_text(json.dumps({"image_s": image_s, "step_s": step_s}))
    new.replace(checkpoint / "pace.json")


def num_computed(checkpoint: Path) -> int:
    """Return how many images all processes have encoded so far."""
    log = checkpoint / "computed.log"
    return sum(map(int, log.read_text().split())) if log.exists() else 0


@hookimpl
def vl_match(config: Mapping[str, Any], files: CheckpointFiles) -> Literal[True] | str:
    """Match the checkpoint that ``install`` writes."""
    del files
    return config["architectures"] == [ARCHITECTURE] or "it is no checkpoint of this benchmark"


@hookimpl
def vl_vision_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    device_map: DeviceMap | None,
    max_memory: MaxMemory | None,
) -> VisionModel:
    """Load LLaVA's vision model, and pace it."""
    model = vl_plugin_llava.vl_vision_model(checkpoint, device, dtype, device_map, max_memory)
    tower = model.tower

    @wraps(tower)
    def paced(pixels: torch.Tensor) -> torch.Tensor:
        started = time.perf_counter()
        features = tower(pixels)
        with (checkpoint.directory / "computed.log").open("a") as log:
            log.write(f"{len(pixels)}\n")
        _sleep(started, len(pixels) * _pace(checkpoint)["image_s"])
        return features

    model.tower = paced  # type: ignore[method-assign]
    return model


@hookimpl
def vl_language_model(checkpoint: Checkpoint) -> LanguageModel:
    """Describe LLaVA's language model, and pace what is built of it."""
    language_model = vl_plugin_llava.vl_language_model(checkpoint)
    build = language_model.build_model

    def build_paced() -> Any:
        model: Any = build()
        forward = model.forward

        @wraps(forward)
        def paced(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = forward(*arguments, **options)
            _sleep(started, _pace(checkpoint)["step_s"])
            return result

        model.forward = paced
        return model

    object.__setattr__(language_model, "build_model", build_paced)
    return language_model


def _pace(checkpoint: Checkpoint) -> dict[str, float]:
    pace: dict[str, float] = json.loads((checkpoint.directory / "pace.json").read_text())
    return pace


def _sleep(started: float, seconds: float) -> None:
    rest = started + seconds - time.perf_counter()
    if rest > 0:
        time.sleep(rest)

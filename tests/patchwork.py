"""A small plugin that meets the whole contract, a checkpoint for it, and ways to break it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from checkpoints import TOKENIZER, write_json
from distributions import Site
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

ARCHITECTURE = "PatchworkForConditionalGeneration"
NAME = "vl-plugin-patchwork"
REQUIRES = ("vlcore>=0.1,<0.2",)

HOOKS = """
from vlcore import hookimpl


@hookimpl
def vl_match(config):
    return True if "patch_size" in config else "config.json names no patch_size"


@hookimpl
def vl_vision_model(checkpoint, device, dtype):
    from PARTS import PatchworkVisionModel

    return PatchworkVisionModel(checkpoint, device, dtype)


@hookimpl
def vl_chat_template(checkpoint, name):
    from PARTS import load_chat_template

    return load_chat_template(name)


@hookimpl
def vl_language_model(checkpoint):
    from PARTS import PatchworkLanguageModel
    from vlcore import renamed

    tensors = renamed(checkpoint, {"language_model.": ""})
    return PatchworkLanguageModel(checkpoint, checkpoint.config["text_config"], tensors)
"""

PARTS = """
import numpy as np
import torch
from torch import nn

from vlcore import (
    Control,
    ImageInputs,
    ImageRows,
    ImageSlot,
    LanguageModel,
    OptionError,
    RoleTemplate,
    Rows,
    VisionModel,
    renamed,
)


class PatchworkVisionModel(VisionModel):
    def __init__(self, checkpoint, device, dtype):
        self.patch = checkpoint.config["patch_size"]
        self.hidden_size = checkpoint.config["text_config"]["hidden_size"]
        self.projector = nn.Linear(3 * self.patch**2, self.hidden_size)
        sources = renamed(checkpoint, {"projector.": ""})
        checkpoint.load_module(self.projector, sources, device=device, dtype=dtype)

    def preprocess(self, image):
        grid = (4, 2) if image.width >= image.height else (2, 4)
        columns, rows = grid
        small = image.convert("RGB").resize((columns * self.patch, rows * self.patch))
        pixels = torch.from_numpy(np.asarray(small, dtype=np.float32) / 255).permute(2, 0, 1)
        return ImageInputs(pixels[None], layout=grid, num_rows=rows * columns)

    def forward(self, inputs):
        return [self.encode(image) for image in inputs]

    def encode(self, image):
        pixels = image.pixels.to(self.device, self.dtype)
        patches = nn.functional.unfold(pixels, self.patch, stride=self.patch)
        rows = self.projector(patches.transpose(1, 2)[0])
        return ImageRows(rows, image.layout)


class PatchworkTemplate(RoleTemplate):
    def expand(self, layout, num_rows):
        columns, rows = layout
        return tuple(part for _ in range(rows) for part in (Rows(columns), Control(";")))


TEMPLATE = PatchworkTemplate(
    system_suffix="\\n",
    user_prefix="USER: ",
    user_suffix=" ",
    assistant_prefix="ASSISTANT:",
    answer_prefix=" ",
    answer_suffix="</s>",
    stop=("</s>",),
)


def load_chat_template(name):
    if name not in (None, "plain"):
        raise OptionError(f"there is no template {name!r}; there is plain")
    return TEMPLATE


class PatchworkLanguageModel(LanguageModel):
    pass
"""


def install_patchwork(
    site: Site,
    edits: Mapping[str, str] | None = None,
    *,
    requires: Sequence[str] = REQUIRES,
    architectures: Sequence[str] = (ARCHITECTURE,),
    serves: Sequence[str] = (),
    more: str = "",
) -> str:
    """Install the plugin, with parts of its source replaced; return its distribution's name.

    Args:
        site: the directory of installed distributions.
        edits: new text for parts of the source, each of which must occur exactly once.
        requires: the plugin's requirements.
        architectures: the names of its entry points.
        serves: the known models that it declares.
        more: source appended to its second module.
    """
    hooks, parts = HOOKS, PARTS
    for old, new in (edits or {}).items():
        assert (hooks + parts).count(old) == 1, f"{old!r} must occur in the plugin once"
        hooks, parts = hooks.replace(old, new), parts.replace(old, new)
    number = len(site.modules)
    second = f"patchwork_parts_{number}"
    source = hooks.replace("PARTS", second)
    module = site.install(NAME, architectures, source, requires=requires, serves=serves)
    (site.root / module / f"{second}.py").write_text(parts + more)
    site.modules.append(second)
    return NAME


def write_patchwork(directory: Path, architecture: str = ARCHITECTURE) -> Path:
    """Write a random checkpoint of the plugin."""
    directory.mkdir()
    text: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 700,
        "max_position_embeddings": 512,
    }
    write_json(
        directory / "config.json",
        {"architectures": [architecture], "patch_size": 4, "text_config": text},
    )
    torch.manual_seed(0)
    language_model = LlamaForCausalLM(LlamaConfig(**text))
    tensors = {f"language_model.{name}": t for name, t in language_model.state_dict().items()}
    tensors |= {
        "projector.weight": torch.randn(32, 3 * 4**2),
        "projector.bias": torch.randn(32),
    }
    save_file(tensors, directory / "model.safetensors")
    for file in ("tokenizer.model", "tokenizer_config.json"):
        (directory / file).write_bytes((TOKENIZER / file).read_bytes())
    return directory

"""Every command and Python block that the README and the docs show is run here."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import TOKENIZER, write_json
from PIL import Image
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import vlcore

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS_NO_RUN = {"make test"}  # that is what runs this


@dataclass(frozen=True)
class Block:
    document: Path
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.name}-{self.language}"


BLOCKS = [
    Block(document, found[1], found[2])
    for document in DOCUMENTS
    for found in FENCE.finditer(document.read_text("utf-8"))
]
COMMANDS = [
    line.split("  #")[0].strip()
    for block in BLOCKS
    if block.language == "sh"
    for line in block.text.splitlines()
    if line.strip()
]


def is_file_of_the_example(block: Block) -> bool:
    return block.text.startswith("# vl_plugin_patchwork/")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command: str) -> None:
    if command in NEEDS_NO_RUN:
        command = f"{command} --dry-run"
    command = command.replace(".venv/bin/", f"{sysconfig.get_path('scripts')}/")
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_readme_shows_the_two_commands() -> None:
    assert {"make demo", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize(
    "block",
    [b for b in BLOCKS if b.language == "python" and not is_file_of_the_example(b)],
    ids=str,
)
def test_every_python_block_runs(block: Block, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block.text)
    done = subprocess.run(
        [sys.executable, "-W", "error", script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or "print" not in block.text


def test_the_plugin_of_the_readme_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    for block in filter(is_file_of_the_example, BLOCKS):
        path = site / block.text.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    (entry_points,) = (block.text for block in BLOCKS if block.language == "toml")
    architecture, module = re.findall(r'^(\w+) = "(\w+)"$', entry_points, re.MULTILINE)[0]
    info = site / "vl_plugin_patchwork-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vl-plugin-patchwork\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text(f"[vlcore.architectures]\n{architecture} = {module}\n")
    monkeypatch.syspath_prepend(site)

    picture = Image.new("RGB", (30, 40), "red")
    with vlcore.pipeline(write_patchwork(tmp_path / "checkpoint", architecture)) as pipe:
        answer = pipe(("What is this?", picture), {"max_new_tokens": 3, "ignore_eos": True})
    assert answer.generate_token_len == 3
    assert answer.input_token_len > 16


def write_patchwork(directory: Path, architecture: str) -> Path:
    """Write a random checkpoint of the README's model."""
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
        "max_position_embeddings": 128,
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

"""What the tests of the engines' supported models share: models, requirements and pins."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from packaging.requirements import Requirement

from vlcore.errors import ConfigError

_ROOT = Path(__file__).parents[1]
_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}


def text_model(**config: Any) -> Any:
    """Return a language model whose text view has this configuration."""
    return SimpleNamespace(
        view_config=_LLAMA | config, checkpoint=SimpleNamespace(name="some-model"), requires=()
    )


def model_without_view() -> Any:
    """Return a language model that has no text view."""

    class Unwritable:
        checkpoint = SimpleNamespace(name="some-model")
        requires = ()

        @property
        def view_config(self) -> dict[str, Any]:
            raise ConfigError("its weights are packed")

    return Unwritable()


def extra_requirement(extra: str) -> Requirement:
    """Return the only requirement of one of vlcore's extras."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    (requirement,) = project["optional-dependencies"][extra]
    return Requirement(requirement)


def read_pins(file: str) -> dict[str, str]:
    """Return the version of each package that a file pins, by its name in lower case."""
    lines = (_ROOT / file).read_text().splitlines()
    return dict(line.lower().split("==") for line in lines if "==" in line)

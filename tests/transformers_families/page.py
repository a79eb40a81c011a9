"""The page of the documentation that lists the families, written from the results of the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
_COLUMNS = ("family", "needs", "checked", "engines", "text architecture", "memory")


def write_page(facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the table of the page, and keep the text before it.

    Args:
        facts: What the tests recorded of each family.
    """
    rows = [_row(name, facts[name]) for name in sorted(facts)]
    lines = [" | ".join(row) for row in (_COLUMNS, ["---"] * len(_COLUMNS), *rows)]
    text = PAGE.read_text(encoding="utf-8").partition(f"| {_COLUMNS[0]} ")[0]
    PAGE.write_text(text + "".join(f"| {line} |\n" for line in lines), encoding="utf-8")


def read_needs() -> dict[str, str]:
    """Return what each family needs, as the page states it."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): row[1] for row in cells}


def needs(name: str) -> str:
    """Return the features and the packages that a family needs."""
    from vl_plugin_transformers.families import FAMILIES

    family = FAMILIES[name]
    return ", ".join([*sorted(family.requires), *family.packages]) or "–"


def known_architectures(engine: str) -> list[str]:
    """Return the text architectures that vlcore runs on TurboMind or vLLM."""
    file = resources.files(f"vlcore.engines.{engine}").joinpath(f"{engine}.json")
    return list(json.loads(file.read_text(encoding="utf-8"))["embeddings"])


def _row(name: str, facts: Mapping[str, Any]) -> list[str]:
    from vl_plugin_transformers.families import FAMILIES

    family = FAMILIES[name]
    checked = ["ids", "embeddings" + ("" if family.batches else " (one by one)")]
    checked += [text for text in ("positions", "deepstack") if facts[text]]
    engines = ["transformers", *(engine for engine in ("TurboMind", "vLLM") if facts[engine])]
    architecture = f"`{facts['architecture']}`" if facts["architecture"] else "–"
    return [
        f"`{name}`",
        needs(name),
        ", ".join([*checked, "answers", *(["videos"] if family.video else [])]),
        ", ".join(engines),
        architecture,
        _memory(name, family.architecture),
    ]


def _memory(name: str, architecture: str) -> str:
    """Measure the family's default configuration on the meta device."""
    import torch
    import transformers

    from vlcore.engines.transformers.meta_device import measure_cache

    try:
        with torch.device("meta"):
            config = transformers.CONFIG_MAPPING[name]()
            model = getattr(transformers, architecture)(config).to(torch.bfloat16).eval()
    except (KeyError, ValueError):  # the default values do not fit together
        return "–"
    text = next(part for part in ("language_model", "text_model") if hasattr(model.model, part))
    num_text = sum(
        parameter.numel()
        for key, parameter in model.named_parameters()
        if key.startswith((f"model.{text}.", "lm_head."))
    )
    num_vision = sum(parameter.numel() for parameter in model.parameters()) - num_text
    weights = f"{num_vision * 2 / 1e9:.1f} + {num_text * 2 / 1e9:.1f} GB"
    for part in [part for part, _ in model.model.named_children() if part != text]:
        setattr(model.model, part, None)
    try:
        batch = measure_cache(model)
    except (RuntimeError, ValueError):
        return weights
    return f"{weights}, {(batch.bytes_per_token * 1000 + batch.bytes_per_sequence) / 1e6:.0f} MB"

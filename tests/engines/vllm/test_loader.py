from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import write_json, write_llava
from safetensors import SafetensorError

from vlcore.engines.vllm.loader import read_weights, register
from vlcore.plugins.stages import load_language_model


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("loader")
    language_model = load_language_model(write_llava(directory / "llava"))
    return language_model.write_view(directory / "view")


def test_only_the_tensors_of_the_index_are_read(view: Path) -> None:
    (file,) = view.glob("*.safetensors")
    assert file.is_symlink()
    read = dict(read_weights(view))
    assert "model.embed_tokens.weight" in read
    assert read["model.embed_tokens.weight"].shape == (700, 64)
    assert not [name for name in read if "vision" in name or "projector" in name]


def test_a_tensor_of_the_index_that_is_missing_is_an_error(view: Path, tmp_path: Path) -> None:
    (file,) = view.glob("*.safetensors")
    (tmp_path / file.name).symlink_to(file.resolve())
    index = {"weight_map": {"model.norm.weight": file.name, "missing": file.name}}
    write_json(tmp_path / "model.safetensors.index.json", index)
    with pytest.raises(SafetensorError, match="missing"):
        list(read_weights(tmp_path))


def test_the_loader_is_registered_once(monkeypatch: pytest.MonkeyPatch, view: Path) -> None:
    model_loader: Any = ModuleType("vllm.model_executor.model_loader")
    default_loader: Any = ModuleType("vllm.model_executor.model_loader.default_loader")
    executor: Any = ModuleType("vllm.model_executor")
    loaders: dict[str, type] = {}
    default_loader.DefaultModelLoader = object
    model_loader._LOAD_FORMAT_TO_MODEL_LOADER = loaders
    model_loader.register_model_loader = lambda name: lambda made: loaders.setdefault(name, made)
    executor.model_loader = model_loader
    for name, module in {
        "vllm": ModuleType("vllm"),
        "vllm.model_executor": executor,
        "vllm.model_executor.model_loader": model_loader,
        "vllm.model_executor.model_loader.default_loader": default_loader,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    register()
    made: Any = loaders["vlcore"]
    register()
    assert loaders == {"vlcore": made}
    names = [name for name, _ in made().get_all_weights(SimpleNamespace(model=str(view)), None)]
    assert sorted(names) == sorted(name for name, _ in read_weights(view))
    assert all(isinstance(tensor, torch.Tensor) for _, tensor in read_weights(view))

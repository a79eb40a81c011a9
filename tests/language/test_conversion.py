"""Language models whose tensors transformers merges on loading, such as mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import TOKENIZER
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, Qwen3MoeConfig
from transformers.core_model_loading import Chunk, WeightConverter
from weight_files import ReadSpy

from vlcore import Checkpoint, LanguageModel, TensorError, TensorSource
from vlcore.checkpoint.conversion import _Group
from vlcore.checkpoint.headers import HeaderCheckpoint

NUM_EXPERTS = 12
"""Sorted as text, expert 10 would come before expert 2."""
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 768,
    "num_experts_per_tok": 4,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: MixtralConfig(num_local_experts=NUM_EXPERTS, **SIZES),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        num_experts=NUM_EXPERTS, moe_intermediate_size=16, **SIZES | {"head_dim": 16}
    ),
}


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param]())  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(directory)
    return directory


def language_model(directory: Path) -> LanguageModel:
    checkpoint = Checkpoint.open(directory)
    sources = {name: TensorSource(name) for name in checkpoint.tensor_names}
    return LanguageModel(checkpoint, checkpoint.config, sources)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(input_ids=torch.arange(3, 40)[None]).logits
        return result


def test_experts_are_merged_in_the_order_of_their_numbers(directory: Path) -> None:
    model = language_model(directory)
    assert any(".experts.11." in name for name in model.tensors)
    model.check_tensors()
    expected = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    torch.testing.assert_close(
        logits(model.to_transformers("cpu", torch.float32)), logits(expected)
    )


def test_a_text_view_has_a_tensor_for_each_expert(directory: Path, tmp_path: Path) -> None:
    model = language_model(directory)
    view = model.write_view(tmp_path / "view")
    assert any(".experts.11." in name for name in Checkpoint.open(view).tensor_names)
    loaded = AutoModelForCausalLM.from_pretrained(view, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(model.to_transformers("cpu", torch.float32)))


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_a_damaged_expert_is_found_without_reading_it(
    directory: Path, tmp_path: Path, damage: str
) -> None:
    tensors = load_file(directory / "model.safetensors")
    name = next(name for name in tensors if ".experts.7." in name)
    expert = tensors.pop(name)
    if damage == "shape":
        tensors[name] = expert[:, :-1].contiguous()
    for file in directory.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(TensorError, match="experts"):
        language_model(tmp_path).check_tensors()


def test_each_tensor_is_read_once_in_the_requested_dtype(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model(directory)
    spy = ReadSpy(monkeypatch)
    loaded = model.to_transformers("cpu", torch.bfloat16)
    assert sorted(spy.names) == sorted(model.checkpoint.tensor_names)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_the_size_of_experts_is_known_without_reading_them(directory: Path) -> None:
    model = language_model(directory)
    headers = HeaderCheckpoint.from_checkpoint(model.checkpoint)
    empty = LanguageModel(headers, model.config, model.tensors).to_transformers("meta", "float16")
    shapes = {key: value.shape for key, value in empty.state_dict().items()}
    loaded = model.to_transformers("cpu").state_dict()
    assert shapes == {key: value.shape for key, value in loaded.items()}
    assert len(headers.used) == len(model.tensors)


def test_missing_tensors_are_found_by_their_names(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which saves downloading the weights of a Hub repository."""
    model = language_model(directory)
    model.tensors = {
        name: source
        for name, source in model.tensors.items()
        if ".0.mlp.experts." not in name and ".0.block_sparse_moe.experts." not in name
    }
    monkeypatch.setattr(Checkpoint, "tensor_infos", None)
    with pytest.raises(TensorError, match=r"lacks 2 tensor\(s\) .*experts.down_proj"):
        model.check_tensors()


def test_the_results_of_a_conversion_are_known_by_their_names() -> None:
    converter = WeightConverter("qkv", [r"(\d+)\.query", r"(\d+)\.key"], [Chunk(dim=0)])
    assert _Group("layers.7.query.weight", converter).targets == {
        "layers.7.query.weight",
        "layers.7.key.weight",
    }

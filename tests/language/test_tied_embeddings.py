"""Output layers that are tied to the embeddings, as transformers decides it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_json
from safetensors.torch import load_file, save_file
from tiny_families import TEXT, config_of
from torch import Tensor
from transformers import AutoModelForCausalLM

from vlcore import Checkpoint, LanguageModel, TensorSource
from vlcore.errors import TensorError

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
ARCHITECTURES = {"llama": "LlamaForCausalLM", "gemma": "GemmaForCausalLM"}
IDS = torch.tensor([[9, 7, 30, 2, 9]])


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """The tensors of an untied model of each type."""
    tensors = {}
    for model_type in ARCHITECTURES:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = config_of(model_type, **TEXT)
            model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.normal_(0.0, 0.3)
        directory = tmp_path_factory.mktemp(model_type)
        model.save_pretrained(directory)
        tensors[model_type] = load_file(directory / "model.safetensors")
    return tensors


def write(directory: Path, model_type: str, tensors: dict[str, Tensor], **config: Any) -> Any:
    """Write a checkpoint whose configuration does not state whether embeddings are tied."""
    directory.mkdir()
    values = {key: value for key, value in TEXT.items() if key != "tie_word_embeddings"}
    values |= {"model_type": model_type, "architectures": [ARCHITECTURES[model_type]]} | config
    write_json(directory / "config.json", values)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    checkpoint = Checkpoint.open(directory)
    sources = {name: TensorSource(name) for name in checkpoint.tensor_names}
    return LanguageModel(checkpoint, values, sources)


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    result: Tensor = model(input_ids=IDS).logits
    return result


def without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("stores", ["both", "equal", "embedding", "output"])
def test_embeddings_are_tied_as_in_transformers(
    stored: dict[str, dict[str, Tensor]],
    tmp_path: Path,
    model_type: str,
    stores: str,
    config: dict[str, Any],
) -> None:
    tensors = stored[model_type]
    if stores == "equal":
        tensors = tensors | {OUTPUT: tensors[EMBEDDING].clone()}
    elif stores != "both":
        tensors = without(tensors, OUTPUT if stores == "embedding" else EMBEDDING)
    language = write(tmp_path / "model", model_type, tensors, **config)
    if model_type == "llama" and not config and len(tensors) < len(stored[model_type]):
        with pytest.raises(TensorError, match=r"lacks 1 tensor\(s\) .*weight"):
            language.check_tensors()
        return
    reference: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    expected = logits(reference.eval())
    assert torch.equal(logits(language.to_transformers("cpu")), expected)
    view = language.write_view(tmp_path / "view")
    loaded: Any = AutoModelForCausalLM.from_pretrained(view)
    assert torch.equal(logits(loaded.eval()), expected)


def test_a_view_of_different_tensors_does_not_tie_them(
    stored: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    both = write(tmp_path / "both", "gemma", stored["gemma"])
    assert both.view_config["tie_word_embeddings"] is False
    one = write(tmp_path / "one", "gemma", without(stored["gemma"], OUTPUT))
    assert one.view_config["tie_word_embeddings"] is True

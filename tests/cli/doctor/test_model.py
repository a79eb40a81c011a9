from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import write_json, write_llava
from distributions import Site, make_site
from patchwork import install_patchwork, write_patchwork
from safetensors.torch import load_file, save_file

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.cli.doctor import model as model_diagnosis
from vlcore.cli.doctor.installation import Finding, Verdict
from vlcore.cli.doctor.model import diagnose_model
from vlcore.engines.selection import unsupported_reasons
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.language.model import LanguageModel
from vlcore.plugins.stages import ModelStages

CPU = torch.device("cpu")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from make_site(tmp_path, monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_llava(tmp_path / "model")


def findings(model: str | Path, **options: Any) -> dict[str, Finding]:
    return {one.topic: one for one in diagnose_model(model, device="cpu", **options)}


def problems(found: dict[str, Finding]) -> list[str]:
    return [topic for topic, one in found.items() if one.verdict is Verdict.PROBLEM]


def test_a_model_that_runs(model: Path) -> None:
    found = findings(model)
    assert {one.verdict for one in found.values()} == {Verdict.FINE}
    assert list(found) == [
        "checkpoint",
        "served by",
        "vision encoder",
        "template",
        "language model",
        "tokenizer",
        "sampling",
        "engine",
        "memory",
    ]
    assert found["served by"].facts["distribution"] == "vl-plugin-llava"
    assert found["engine"].facts["engine"] == "transformers"
    for one in found.values():
        json.dumps(dict(one.facts))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_memory_is_what_loading_takes(model: Path, dtype: str) -> None:
    facts = findings(model, dtype=dtype)["memory"].facts
    stages = ModelStages(model)
    text = stages.language_model().to_transformers("cpu", dtype)
    assert facts["text_bytes"] == sum(parameter.nbytes for parameter in text.parameters())
    config = text.config
    size = torch.float16.itemsize if dtype == "float16" else 4
    per_layer = config.num_key_value_heads * config.head_dim * 2 * size
    assert facts["cache_bytes_per_token"] == config.num_hidden_layers * per_layer
    context_length = stages.language_model().context_length
    assert facts["context_bytes"] == facts["cache_bytes_per_token"] * context_length
    stored = load_file(model / "model.safetensors")
    floats = sum(tensor.numel() for tensor in stored.values() if tensor.is_floating_point())
    assert 0 < facts["vision_bytes"] <= floats * size - facts["text_bytes"]
    assert facts["weight_bytes"] == facts["vision_bytes"] + facts["text_bytes"]


@pytest.mark.parametrize(
    ("spare", "verdict", "words"),
    [
        (-1, Verdict.PROBLEM, "which is too little: use a smaller dtype or a larger device"),
        (100 * 1024, Verdict.NOTE, "of 512 tokens"),
        (2**30, Verdict.FINE, "for a full context; cpu has"),
    ],
)
def test_memory_that_is_short(
    model: Path, monkeypatch: pytest.MonkeyPatch, spare: int, verdict: Verdict, words: str
) -> None:
    weights = findings(model)["memory"].facts["weight_bytes"]
    monkeypatch.setattr(model_diagnosis, "free_bytes", lambda _: weights + spare)
    found = findings(model)["memory"]
    assert found.verdict is verdict
    assert words in found.text


# -- what keeps a model from running


def test_no_such_model() -> None:
    found = findings("./nowhere")
    assert problems(found) == list(found) == ["checkpoint"]
    assert "there is no directory './nowhere'" in found["checkpoint"].text


def test_a_device_that_is_not_there(model: Path) -> None:
    (found,) = diagnose_model(model, device="cuda:7")
    assert "sees no CUDA device" in found.text


def test_no_plugin_serves_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NobodysModel"]}')
    found = findings(tmp_path)
    assert problems(found) == ["served by"]
    assert "no installed plugin serves this NobodysModel" in found["served by"].text


def test_every_wrong_part_is_reported(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in tensors if "mm_projector" in name)
    del tensors[name]
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, model / "model.safetensors")
    (model / "tokenizer.model").unlink()
    found = findings(model)
    assert problems(found) == ["vision encoder", "language model"]
    assert "lacks 1 tensor(s): model.mm_projector" in found["vision encoder"].text
    assert "model.norm.weight gives [3]" in found["language model"].text


def test_a_tokenizer_that_is_missing(model: Path) -> None:
    (model / "tokenizer.model").unlink()
    assert problems(findings(model)) == ["tokenizer"]


def test_the_sampling_defaults_of_a_served_model_are_reported(model: Path) -> None:
    assert findings(model)["sampling"].facts == {"defaults": {}}
    write_json(model / "generation_config.json", {"temperature": 0.9, "top_k": 20.0, "top_p": None})
    found = findings(model)["sampling"]
    assert found.verdict is Verdict.FINE
    assert found.facts == {"defaults": {"temperature": 0.9, "top_k": 20}}
    assert "temperature 0.9, top_k 20" in found.text


def test_an_invalid_sampling_default_is_a_problem(model: Path) -> None:
    write_json(model / "generation_config.json", {"top_p": 7})
    found = findings(model)
    assert problems(found) == ["sampling"]
    assert "top_p must be" in found["sampling"].text


def test_an_engine_that_lacks_what_the_model_requires(model: Path) -> None:
    language_model = ModelStages(model).language_model()
    reasons = unsupported_reasons(language_model, CPU, torch.float32)
    assert reasons["transformers"] is None
    language_model.requires = frozenset({"mrope"})
    reasons = unsupported_reasons(language_model, CPU, torch.float32)
    assert reasons["transformers"] is None
    assert reasons["turbomind"] == (
        "it lacks mrope: the model requires mrope, and the engine offers none of the features that "
        "a model may require; use engine='transformers'"
    )


def test_no_engine_can_run_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LanguageModel, "requires", frozenset({"mrope"}))
    monkeypatch.setattr(TransformersEngine, "offers", frozenset({"deepstack"}))
    found = findings(model)
    assert problems(found) == ["engine"]
    assert found["engine"].text.startswith("no engine can run the model: not ")
    assert "not transformers: it lacks mrope: the model requires mrope" in found["engine"].text
    assert "and the engine offers deepstack" in found["engine"].text
    assert "no engine of vlcore offers all of them" in found["engine"].text


def test_an_unknown_feature_is_a_fault_of_the_plugin(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModel, "requires", frozenset({"telepathy"}))
    found = findings(model)
    assert problems(found) == ["language model"]
    assert "must be a frozenset of these names: 'mrope'" in found["language model"].text


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_positions_whose_scale_depends_on_the_length(tmp_path: Path, rope_type: str) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    scaling = {"type": rope_type, "factor": 2.0, "original_max_position_embeddings": 256}
    path = write_llava(tmp_path / "model", rope_scaling=scaling | factors)
    found = findings(path)
    assert problems(found) == []
    assert found["memory"].facts["cache_bytes_per_token"] > 0


def test_a_cache_of_unknown_size_is_no_problem(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr(model_diagnosis, "measure_cache", fail)
    found = findings(model)
    assert problems(found) == []
    assert found["memory"].verdict is Verdict.NOTE
    assert "size of the KV cache cannot be determined" in found["memory"].text
    assert found["memory"].facts["context_bytes"] is None


# -- what a plugin may do


@pytest.mark.parametrize(
    "looks", ["float(weight.sum())", "weight.tolist()", "weight.cpu()", "weight.numpy()"]
)
def test_a_plugin_that_looks_at_values_cannot_be_counted(
    site: Site, tmp_path: Path, looks: str
) -> None:
    load = "        checkpoint.load_module(self.projector, sources, device=device, dtype=dtype)\n"
    look = f"        weight = self.projector.weight.detach()\n        {looks}\n"
    install_patchwork(site, {load: load + look})
    found = findings(write_patchwork(tmp_path / "model"))
    assert problems(found) == []
    assert found["vision encoder"].verdict is Verdict.NOTE
    assert "cannot be determined in advance" in found["vision encoder"].text
    assert "of the language model only" in found["memory"].text
    assert found["memory"].facts["vision_bytes"] is None


def test_a_hook_that_raises(site: Site, tmp_path: Path) -> None:
    line = "        self.patch = checkpoint.config"
    install_patchwork(site, {line: "        raise RuntimeError('no such vision encoder')\n" + line})
    found = findings(write_patchwork(tmp_path / "model"))
    assert problems(found) == ["vision encoder"]
    assert "vl_vision_model of plugin vl-plugin-patchwork" in found["vision encoder"].text
    assert "no such vision encoder" in found["vision encoder"].text


# -- a hub repository that was not fetched


@pytest.mark.parametrize(("free", "verdict"), [(2**40, Verdict.NOTE), (1000, Verdict.PROBLEM)])
def test_what_remains_to_be_downloaded_is_reported(
    model: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: Verdict
) -> None:
    weights = model / "model.safetensors"
    stored = load_file(weights)
    header = {
        name: SimpleNamespace(dtype="F32", shape=list(tensor.shape))
        for name, tensor in stored.items()
    }
    weights.unlink()
    hub = SimpleNamespace(
        parse_safetensors_file_metadata=lambda *_, **__: SimpleNamespace(tensors=header)
    )
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    opened = Checkpoint(model, name="someone/model", fetch=lambda _: None)
    monkeypatch.setattr(Checkpoint, "open", lambda *_, **__: opened)
    usage: Any = SimpleNamespace(free=free)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    found = findings("someone/model")
    assert found["download"].verdict is verdict
    assert found["download"].facts["free_bytes"] == free
    assert found["download"].facts["num_bytes"] > 1000
    assert found["memory"].verdict is Verdict.FINE

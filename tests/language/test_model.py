from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_json, write_llava
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_families import config_of
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from weight_files import FakeHub, ReadSpy, read_all, sharded_safetensors, single_bin

import vlcore
from vlcore import Checkpoint, LanguageModel, TensorSource, renamed
from vlcore.errors import CheckpointError, ConfigError, TensorError

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": 40,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
CONFIG = SIZES | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
TEXT = {name: name for name in ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")}
IDS = torch.tensor([[1, 7, 30, 2, 9]])


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.train(False)
    return model


def logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        result: Tensor = model(input_ids=IDS).logits
    return result


def stored_tensors(reference: PreTrainedModel) -> dict[str, Tensor]:
    tensors = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    tensors["model.vision.weight"] = torch.ones(3)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    return tensors


def write(directory: Path, tensors: dict[str, Tensor]) -> Checkpoint:
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    write_json(directory / "config.json", {"architectures": ["MadeUp"]})
    return Checkpoint.open(directory)


@pytest.fixture
def whole(tmp_path: Path, reference: PreTrainedModel) -> LanguageModel:
    """The language model under names of its own, next to other tensors."""
    checkpoint = write(tmp_path / "model", stored_tensors(reference))
    return LanguageModel(checkpoint, CONFIG, renamed(checkpoint, TEXT))


@pytest.fixture
def fused(tmp_path: Path, reference: PreTrainedModel) -> LanguageModel:
    """Keys and values in one tensor, and every name changed."""
    tensors = {f"text.{name}": tensor for name, tensor in stored_tensors(reference).items()}
    checkpoint = tmp_path / "model"
    sources = {}
    for name in reference.state_dict():
        sources[name] = TensorSource(f"text.{name}")
    for layer in range(SIZES["num_hidden_layers"]):
        stem = f"model.layers.{layer}.self_attn."
        parts = [tensors.pop(f"text.{stem}{part}_proj.weight") for part in "kv"]
        tensors[f"text.{stem}kv.weight"] = torch.cat(parts)
        rows = len(parts[0])
        for index, part in enumerate("kv"):
            sources[f"{stem}{part}_proj.weight"] = TensorSource(
                f"text.{stem}kv.weight", slice(index * rows, (index + 1) * rows)
            )
    return LanguageModel(write(checkpoint, tensors), CONFIG, sources)


# -- configuration


def test_the_language_model_is_described_without_reading_weights(
    whole: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = ReadSpy(monkeypatch)
    assert whole.architecture == "LlamaForCausalLM"
    assert (whole.hidden_size, whole.context_length) == (16, 64)
    assert whole.requires == frozenset()
    assert spy.names == []


@pytest.mark.parametrize("missing", ["model_type", "architectures"])
def test_a_configuration_without_a_model_is_reported(whole: LanguageModel, missing: str) -> None:
    config = {key: value for key, value in CONFIG.items() if key != missing}
    with pytest.raises(ConfigError, match="needs a model_type and architectures"):
        LanguageModel(whole.checkpoint, config, {})


@pytest.mark.parametrize("change", [{"model_type": "made_up"}, {"hidden_size": "wide"}])
def test_a_configuration_that_transformers_refuses_is_reported(
    whole: LanguageModel, change: dict[str, Any]
) -> None:
    language = LanguageModel(whole.checkpoint, CONFIG | change, {})
    with pytest.raises(ConfigError, match="transformers cannot read the text configuration"):
        language.transformers_config  # noqa: B018


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rope_theta": 7.0}, {"rope_type": "default", "rope_theta": 7.0}),
        ({"rope_theta": 7.0, "rope_scaling": None}, {"rope_type": "default", "rope_theta": 7.0}),
        (
            {"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0},
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        ),
    ],
)
def test_rotary_settings_of_older_configurations_are_kept(
    whole: LanguageModel, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    config: Any = LanguageModel(whole.checkpoint, CONFIG | given, {}).transformers_config
    assert config.rope_parameters == expected


# -- renaming


def test_the_first_matching_prefix_renames_a_tensor(whole: LanguageModel) -> None:
    sources = renamed(whole.checkpoint, {"model.layers.0.": "first.", "model.": "", "none.": "x."})
    assert sources["first.mlp.up_proj.weight"] == TensorSource("model.layers.0.mlp.up_proj.weight")
    assert sources["norm.weight"] == TensorSource("model.norm.weight")
    assert not any(name.startswith(("layers.0.", "lm_head", "x.")) for name in sources)


def test_rotary_frequencies_are_left_out(whole: LanguageModel) -> None:
    assert not any("inv_freq" in name for name in whole.tensors)


# -- a transformers model


@pytest.mark.parametrize("kind", ["whole", "fused"])
def test_the_model_computes_the_same(
    kind: str, reference: PreTrainedModel, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind).to_transformers("cpu", torch.float32)
    assert torch.equal(logits(model), logits(reference))
    assert not model.training
    assert all(tensor.device.type == "cpu" for tensor in [*model.parameters(), *model.buffers()])


def test_the_models_dtype_is_the_requested_or_the_stored_one(whole: LanguageModel) -> None:
    assert whole.to_transformers("cpu", torch.bfloat16).dtype == torch.bfloat16
    assert whole.to_transformers().dtype == torch.float32


def test_rotary_frequencies_stay_float32(whole: LanguageModel, reference: PreTrainedModel) -> None:
    buffers = dict(whole.to_transformers("cpu", torch.bfloat16).named_buffers())
    expected = dict(reference.named_buffers())
    assert torch.equal(buffers["model.rotary_emb.inv_freq"], expected["model.rotary_emb.inv_freq"])


def test_tied_embeddings_need_no_head(tmp_path: Path, reference: PreTrainedModel) -> None:
    tensors = stored_tensors(reference)
    del tensors["lm_head.weight"]
    checkpoint = write(tmp_path / "model", tensors)
    tied = CONFIG | {"tie_word_embeddings": True}
    model = LanguageModel(checkpoint, tied, renamed(checkpoint, TEXT)).to_transformers()
    weights = dict(model.named_parameters(remove_duplicate=False))
    embeddings = weights["model.embed_tokens.weight"]
    assert weights["lm_head.weight"] is embeddings
    assert torch.equal(embeddings, tensors["model.embed_tokens.weight"])


def test_a_missing_head_is_reported(tmp_path: Path, reference: PreTrainedModel) -> None:
    tensors = stored_tensors(reference)
    del tensors["lm_head.weight"]
    checkpoint = write(tmp_path / "model", tensors)
    language = LanguageModel(checkpoint, CONFIG, renamed(checkpoint, TEXT))
    with pytest.raises(TensorError, match=r"lacks 1 tensor\(s\) .*: lm_head\.weight"):
        language.to_transformers()


def test_too_many_or_too_few_layers_are_reported(whole: LanguageModel) -> None:
    short = LanguageModel(whole.checkpoint, CONFIG | {"num_hidden_layers": 1}, whole.tensors)
    with pytest.raises(TensorError, match=r"does not use: model\.layers\.1\."):
        short.to_transformers()
    tall = LanguageModel(whole.checkpoint, CONFIG | {"num_hidden_layers": 3}, whole.tensors)
    with pytest.raises(TensorError, match=r"config\.json asks for: model\.layers\.2\."):
        tall.to_transformers()


def test_a_wrong_vocabulary_is_reported(whole: LanguageModel) -> None:
    wide = LanguageModel(whole.checkpoint, CONFIG | {"vocab_size": 41}, whole.tensors)
    with pytest.raises(TensorError, match=r"gives \[40, 16\] where config\.json asks for \[41, 16"):
        wide.to_transformers()


@pytest.mark.parametrize(
    ("generation", "expected"),
    [(None, 2), ({"eos_token_id": [5, 6]}, [5, 6]), ({"temperature": 0.1}, 2)],
)
def test_the_end_of_an_answer_is_read_from_the_checkpoint(
    whole: LanguageModel, generation: dict[str, Any] | None, expected: object
) -> None:
    if generation is not None:
        write_json(whole.checkpoint.directory / "generation_config.json", generation)
    settings = whole.to_transformers().generation_config
    assert settings is not None
    assert settings.eos_token_id == expected


# -- text views


def view_files(view: Path) -> dict[str, bool]:
    """Tell of each weight file of a view whether it is a link."""
    return {path.name: path.is_symlink() for path in sorted(view.glob("*.safetensors"))}


def read_index(view: Path) -> dict[str, str]:
    index = json.loads((view / "model.safetensors.index.json").read_text())
    weight_map: dict[str, str] = index["weight_map"]
    for name, filename in weight_map.items():
        with safe_open(view / filename, framework="pt") as file:
            assert name in file.keys()  # noqa: SIM118
    return weight_map


def load(view: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(view, dtype=torch.float32)
    model.train(False)
    return model


def test_a_view_of_unchanged_tensors_copies_none(
    tmp_path: Path, whole: LanguageModel, reference: PreTrainedModel
) -> None:
    view = whole.write_view(tmp_path / "views" / "text")
    assert view == tmp_path / "views" / "text"
    assert view_files(view) == {"linked-00001.safetensors": True}
    link = (view / "linked-00001.safetensors").resolve()
    assert link == (whole.checkpoint.directory / "model.safetensors").resolve()
    assert set(read_index(view)) == set(reference.state_dict())
    assert torch.equal(logits(load(view)), logits(reference))


def test_a_view_links_each_shard_of_the_language_model_once(
    tmp_path: Path, reference: PreTrainedModel
) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    tensors = stored_tensors(reference)
    vision = {"model.vision.weight": tensors.pop("model.vision.weight")}
    sharded_safetensors(directory, tensors, num_shards=3)
    save_file(vision, directory / "vision.safetensors")
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.vision.weight"] = "vision.safetensors"
    write_json(index, content)
    checkpoint = Checkpoint.open(directory)
    language = LanguageModel(checkpoint, CONFIG, renamed(checkpoint, TEXT))
    view = language.write_view(tmp_path / "view")
    assert list(view_files(view).values()) == [True, True, True]
    targets = {path.resolve().name for path in view.glob("*.safetensors")}
    assert targets == {f"model-0000{shard}-of-00003.safetensors" for shard in (1, 2, 3)}
    assert torch.equal(logits(load(view)), logits(reference))


def test_a_view_copies_tensors_that_are_renamed_or_cut(
    tmp_path: Path, fused: LanguageModel, reference: PreTrainedModel
) -> None:
    view = fused.write_view(tmp_path / "view")
    assert view_files(view) == {"copied-00001.safetensors": False}
    copied = load_file(view / "copied-00001.safetensors")
    assert set(copied) == set(read_index(view)) == set(reference.state_dict())
    assert torch.equal(logits(load(view)), logits(reference))


def test_a_view_copies_only_changed_tensors(
    tmp_path: Path, whole: LanguageModel, reference: PreTrainedModel
) -> None:
    tensors = stored_tensors(reference)
    tensors["head"] = tensors.pop("lm_head.weight")
    checkpoint = write(tmp_path / "other", tensors)
    sources = renamed(checkpoint, TEXT | {"head": "lm_head.weight"})
    view = LanguageModel(checkpoint, CONFIG, sources).write_view(tmp_path / "view")
    assert view_files(view) == {
        "copied-00001.safetensors": False,
        "linked-00001.safetensors": True,
    }
    assert set(load_file(view / "copied-00001.safetensors")) == {"lm_head.weight"}
    index = read_index(view)
    assert set(index) == set(reference.state_dict())
    assert [name for name in index if index[name].startswith("copied")] == ["lm_head.weight"]


def test_a_view_copies_a_tensor_that_is_cut_under_its_own_name(
    tmp_path: Path, reference: PreTrainedModel
) -> None:
    tensors = stored_tensors(reference)
    head = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = torch.cat([head, torch.ones(8, head.shape[1])])
    checkpoint = write(tmp_path / "model", tensors)
    sources = renamed(checkpoint, TEXT)
    sources["lm_head.weight"] = TensorSource("lm_head.weight", slice(0, len(head)))
    view = LanguageModel(checkpoint, CONFIG, sources).write_view(tmp_path / "view")
    assert read_index(view)["lm_head.weight"].startswith("copied")
    assert torch.equal(logits(load(view)), logits(reference))


def test_a_view_of_pickles_copies_them(
    tmp_path: Path, whole: LanguageModel, reference: PreTrainedModel
) -> None:
    directory = whole.checkpoint.directory
    single_bin(directory, read_all(directory))
    (directory / "model.safetensors").unlink()
    checkpoint = Checkpoint.open(directory)
    language = LanguageModel(checkpoint, CONFIG, renamed(checkpoint, TEXT))
    view = language.write_view(tmp_path / "view")
    assert view_files(view) == {"copied-00001.safetensors": False}
    assert torch.equal(logits(load(view)), logits(reference))


def test_a_view_splits_copies_into_shards(
    tmp_path: Path,
    fused: LanguageModel,
    reference: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vlcore.language.text_view.plan._SHARD_BYTES", 4000)
    view = fused.write_view(tmp_path / "view")
    assert len(view_files(view)) > 2
    names = [name for path in view.glob("*.safetensors") for name in load_file(path)]
    assert sorted(names) == sorted(reference.state_dict())
    assert torch.equal(logits(load(view)), logits(reference))


def test_a_views_config_is_that_of_the_standard_architecture(
    tmp_path: Path, whole: LanguageModel
) -> None:
    language = LanguageModel(whole.checkpoint, CONFIG | {"rope_theta": 7.0}, whole.tensors)
    config = json.loads((language.write_view(tmp_path / "view") / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 7.0
    assert {key: config[key] for key in SIZES} == SIZES


def test_a_view_links_the_tokenizers_files(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_llava(tmp_path / "model"))
    write_json(checkpoint.directory / "generation_config.json", {"eos_token_id": 2})
    write_json(checkpoint.directory / "preprocessor_config.json", {})
    language = vlcore.load_language_model(checkpoint)
    view = language.write_view(tmp_path / "view")
    linked = {path.name for path in view.iterdir() if path.is_symlink()}
    assert linked == {
        "tokenizer.model",
        "tokenizer_config.json",
        "generation_config.json",
        "linked-00001.safetensors",
    }
    ids = [Checkpoint(path).tokenizer()("an image")["input_ids"] for path in (view,)]
    assert ids == [language.tokenizer()("an image")["input_ids"]]


def test_a_view_needs_an_empty_directory(tmp_path: Path, whole: LanguageModel) -> None:
    taken = tmp_path / "view"
    taken.mkdir()
    (taken / "notes.md").write_text("mine")
    with pytest.raises(CheckpointError, match=r"needs an empty directory; .*view is not empty"):
        whole.write_view(taken)
    assert [path.name for path in taken.iterdir()] == ["notes.md"]


def test_a_view_does_not_replace_a_file(tmp_path: Path, whole: LanguageModel) -> None:
    (tmp_path / "view").write_text("mine")
    with pytest.raises(CheckpointError, match=r"needs a directory; .*view is a file"):
        whole.write_view(tmp_path / "view")


def test_a_view_works_with_relative_paths(
    tmp_path: Path,
    whole: LanguageModel,
    reference: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint.open("model")
    language = LanguageModel(checkpoint, CONFIG, renamed(checkpoint, TEXT))
    view = language.write_view("deep/view").resolve()
    monkeypatch.chdir("/")
    assert torch.equal(logits(load(view)), logits(reference))


def test_the_view_of_a_hub_checkpoint_links_existing_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path / "cache", monkeypatch)
    hub.repositories["maker/llava"] = write_llava(tmp_path / "repository")
    view = vlcore.load_language_model("maker/llava").write_view(tmp_path / "view")
    links = [path for path in view.iterdir() if path.is_symlink()]
    assert links
    assert all(path.exists() for path in links)


@pytest.mark.parametrize("change", [{"hidden_act": "nope"}, {"rope_theta": "x"}], ids=str)
def test_values_that_transformers_cannot_use_are_reported(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    language_model = vlcore.load_language_model(write_llava(tmp_path, **change))
    with pytest.raises(ConfigError, match="transformers cannot"):
        language_model.to_transformers()


def test_an_end_token_that_is_not_an_id_is_reported(tmp_path: Path) -> None:
    write_llava(tmp_path)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": "x"})
    with pytest.raises(ConfigError, match="eos_token_id must be an integer"):
        vlcore.load_language_model(tmp_path).to_transformers()


@pytest.mark.parametrize(
    ("stated", "config", "expected"),
    [
        (None, {"eos_token_id": 5}, (5,)),
        (None, {"eos_token_id": [5, 6]}, (5, 6)),
        (None, {"eos_token_id": None}, ()),
        ([7, 8], {"eos_token_id": 5}, (7, 8)),
        (7, {}, (7,)),
    ],
)
def test_the_end_tokens_are_reported_without_weights(
    tmp_path: Path, stated: object, config: dict[str, Any], expected: tuple[int, ...]
) -> None:
    write_json(tmp_path / "config.json", {"architectures": ["X"]})
    if stated is not None:
        write_json(tmp_path / "generation_config.json", {"eos_token_id": stated})
    language_model = LanguageModel(Checkpoint.open(tmp_path), CONFIG | config, {})
    assert language_model.end_token_ids == expected


@pytest.mark.parametrize("padding", [-(10**6), 10**6])
def test_a_padding_token_outside_the_vocabulary_is_ignored(
    padding: int, whole: LanguageModel
) -> None:
    language = LanguageModel(
        whole.checkpoint, whole.config | {"pad_token_id": padding}, whole.tensors
    )
    assert language.transformers_config.pad_token_id is None
    assert language.to_transformers().config.pad_token_id is None
    assert language.view_config.get("pad_token_id") is None


def test_more_layers_than_tensors_are_an_error_at_once(whole: LanguageModel) -> None:
    language = LanguageModel(
        whole.checkpoint, whole.config | {"num_hidden_layers": 10**6}, whole.tensors
    )
    with pytest.raises(ConfigError, match="num_hidden_layers is 1000000, but"):
        language.check_tensors()


# -- text models without an output layer


def test_a_text_model_of_transformers_gets_an_output_layer(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]}
    config = SIZES | {"model_type": "qwen2_5_vl_text", "architectures": ["Qwen2_5_VL"]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text: Any = AutoModel.from_config(  # type: ignore[no-untyped-call]
            config_of("qwen2_5_vl_text", **SIZES, rope_parameters=rope)
        )
    tensors = {f"model.{name}": tensor for name, tensor in text.state_dict().items()}
    tensors["lm_head.weight"] = torch.randn(SIZES["vocab_size"], SIZES["hidden_size"])
    checkpoint = write(tmp_path / "text", tensors)
    sources = {name: TensorSource(name) for name in tensors}
    language = LanguageModel(checkpoint, config | {"rope_parameters": rope}, sources)
    language.check_tensors()
    model = language.to_transformers("cpu")
    with torch.inference_mode():
        expected = text.eval()(input_ids=IDS).last_hidden_state @ tensors["lm_head.weight"].T
        assert torch.allclose(model(input_ids=IDS).logits, expected, atol=1e-5)
        last = model(input_ids=IDS, logits_to_keep=torch.tensor([4])).logits
    assert torch.allclose(last, expected[:, 4:], atol=1e-5)
    with pytest.raises(ConfigError, match=r"no text-only class for 'qwen2_5_vl_text'"):
        language.write_view(tmp_path / "view")

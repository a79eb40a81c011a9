from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_json, write_llava
from small_llama import CONFIG, IDS, SIZES, TEXT, logits, stored_tensors, write
from tiny_families import config_of
from transformers import (
    AutoModel,
    PreTrainedModel,
)
from weight_files import ReadSpy

import vlcore
from vlcore import Checkpoint, LanguageModel, TensorSource, renamed
from vlcore.errors import ConfigError, TensorError

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

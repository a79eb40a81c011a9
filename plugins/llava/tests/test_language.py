from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import TOKENIZER, write_json, write_llava
from golden_cases import GOLDEN, GoldenCase, load_case, read_lines
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel
from weight_files import LAYOUTS, read_all

import vlcore
from vlcore import (
    Checkpoint,
    ConfigError,
    Control,
    EngineUnavailableError,
    ImageLayout,
    ImageSlot,
    PromptPart,
    PromptTokenizer,
    TensorError,
    Text,
)
from vlcore.flat_layout import FlatLanguageModel

CASES = (
    "llava15",
    "llava16_anyres",
    "llava16_mistral",
    "llava15_hf",
    "llava16_hf",
    "llava16_mistral_hf_newkeys",
)
NUM_ROWS = 3
IMAGE_TOKEN_ID = -200


# -- logits


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> GoldenCase:
    return load_case(request.param)


@pytest.fixture(scope="module")
def model(case: GoldenCase) -> PreTrainedModel:
    return vlcore.load_language_model(case.directory).to_transformers("cpu", torch.float32)


@pytest.fixture(scope="module")
def rows(case: GoldenCase) -> list[Tensor]:
    vision = vlcore.load_vision_model(case.directory)
    encoded = vision.forward([vision.preprocess(image) for image in case.images()])
    return [image.rows if not isinstance(image, Tensor) else image for image in encoded]


def logits(model: PreTrainedModel, embeddings: Tensor) -> Tensor:
    with torch.inference_mode():
        result: Tensor = model(inputs_embeds=embeddings[None]).logits[0]
    return result


def test_logits_are_the_releases(
    case: GoldenCase, model: PreTrainedModel, rows: list[Tensor]
) -> None:
    assert {"single0", "two", "text"} <= set(case.prompts)
    for prompt in case.prompts:
        with torch.inference_mode():
            embeddings = case.embeddings(prompt, model.get_input_embeddings(), rows)
        result = logits(model, embeddings)[case.expected[f"{prompt}_pos"]]
        np.testing.assert_allclose(
            result.numpy(), case.expected[f"{prompt}_logits"], err_msg=prompt, **case.tolerance
        )


@pytest.mark.parametrize("store", LAYOUTS)
def test_a_view_computes_what_the_release_does(
    case: GoldenCase, rows: list[Tensor], tmp_path: Path, store: Any
) -> None:
    directory = tmp_path / "checkpoint"
    shutil.copytree(case.directory, directory)
    (directory / "model.safetensors").unlink()
    store(directory, read_all(case.directory))
    language = vlcore.load_language_model(directory)
    view = language.write_view(tmp_path / "view")
    index = json.loads((view / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(language.tensors)
    is_link = {(view / file).is_symlink() for file in index.values()}
    is_original = "_hf" not in case.name
    is_safetensors = store in LAYOUTS[:2]
    assert (is_link == {True}) == (is_original and is_safetensors)
    loaded = AutoModelForCausalLM.from_pretrained(view, dtype=torch.float32)
    assert isinstance(loaded, LlamaForCausalLM)
    for prompt in case.prompts:
        with torch.inference_mode():
            embeddings = case.embeddings(prompt, loaded.get_input_embeddings(), rows)
        result = logits(loaded, embeddings)[case.expected[f"{prompt}_pos"]]
        np.testing.assert_allclose(
            result.numpy(), case.expected[f"{prompt}_logits"], err_msg=prompt, **case.tolerance
        )


@pytest.mark.parametrize("name", ["llava16_mistral", "llava16_mistral_hf_newkeys"])
@pytest.mark.parametrize(
    ("window", "architecture"),
    [(None, "LlamaForCausalLM"), (32768, "LlamaForCausalLM"), (4096, "MistralForCausalLM")],
)
def test_only_a_sliding_window_tells_mistral_from_llama(
    tmp_path: Path, name: str, window: int | None, architecture: str
) -> None:
    case = load_case(name)
    config = json.loads((case.directory / "config.json").read_text())
    config.get("text_config", config)["sliding_window"] = window
    write_json(tmp_path / "config.json", config)
    (tmp_path / "model.safetensors").symlink_to(case.directory / "model.safetensors")
    language = vlcore.load_language_model(tmp_path)
    assert language.architecture == "MistralForCausalLM"
    assert language.view_config["architectures"] == [architecture]
    is_windowed = architecture == "MistralForCausalLM"
    assert language.view_config.get("sliding_window") == (window if is_windowed else None)
    assert language.view_config["max_position_embeddings"] == 32768
    loaded = AutoModelForCausalLM.from_pretrained(language.write_view(tmp_path / "view"))
    assert type(loaded).__name__ == architecture


def test_the_views_context_is_the_models_whatever_else_is_stated(tmp_path: Path) -> None:
    stated = {"max_sequence_length": 7, "model_max_length": 8, "seq_length": 9}
    language = vlcore.load_language_model(write_llava(tmp_path, **stated))
    assert language.view_config["max_position_embeddings"] == 512
    assert not stated.keys() & language.view_config.keys()
    assert not any(key.startswith(("mm_", "image_")) for key in language.view_config)


# -- quantised weights

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True}
UNCONVERTED = {
    "llava15": (["mm_projector", "vision_tower", "lm_head"],) * 2,
    "llava15_hf": (["vision_tower", "language_model.lm_head"], ["lm_head"]),
    "llava16_mistral_hf_newkeys": (None, None),
}


def write_awq(case: GoldenCase, directory: Path) -> dict[str, Tensor]:
    """Write a case as if its language model's linear layers had been packed, four bits a weight."""
    shutil.copytree(case.directory, directory)
    tensors: dict[str, Tensor] = {}
    for name, tensor in read_all(case.directory).items():
        if "layers." not in name or "_proj.weight" not in name or "vision" in name:
            tensors[name] = tensor
            continue
        stem, (outputs, inputs) = name.removesuffix(".weight"), tensor.shape
        integers = {"qweight": (inputs, outputs // 8), "qzeros": (inputs // 16, outputs // 8)}
        for part, shape in integers.items():
            tensors[f"{stem}.{part}"] = torch.randint(0, 2**31, shape, dtype=torch.int32)
        tensors[f"{stem}.scales"] = torch.rand(inputs // 16, outputs).half()
    LAYOUTS[1](directory, tensors)
    (directory / "model.safetensors").unlink()
    config = json.loads((directory / "config.json").read_text())
    unconverted, _ = UNCONVERTED[case.name]
    quantization = AWQ | {"modules_to_not_convert": unconverted}
    write_json(directory / "config.json", config | {"quantization_config": quantization})
    return tensors


@pytest.mark.parametrize("name", UNCONVERTED)
def test_the_view_of_packed_weights_keeps_them_and_their_settings(
    tmp_path: Path, name: str
) -> None:
    stored = write_awq(load_case(name), tmp_path / "checkpoint")
    language = vlcore.load_language_model(tmp_path / "checkpoint")
    view = language.write_view(tmp_path / "view")
    config = json.loads((view / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    _, unconverted = UNCONVERTED[name]
    assert config["quantization_config"] == AWQ | {"modules_to_not_convert": unconverted}
    index = json.loads((view / "model.safetensors.index.json").read_text())["weight_map"]
    for part in ("qweight", "qzeros", "scales"):
        assert f"model.layers.1.mlp.down_proj.{part}" in index
    assert "model.layers.1.mlp.down_proj.weight" not in index
    assert not any("vision" in target or "projector" in target for target in index)
    for target, file in index.items():
        assert (view / file).is_symlink() or name != "llava15"
        tensor = stored[language.tensors[target].name]
        with safe_open(view / file, framework="pt") as opened:
            assert torch.equal(opened.get_tensor(target), tensor)


def test_the_embedded_engine_refuses_packed_weights(tmp_path: Path) -> None:
    write_awq(load_case("llava15"), tmp_path / "checkpoint")
    language = vlcore.load_language_model(tmp_path / "checkpoint")
    with pytest.raises(
        EngineUnavailableError, match=r"checkpoint is quantised \(awq\), and the em"
    ):
        language.to_transformers()


def test_packed_weights_of_an_unknown_kind_are_not_renamed(tmp_path: Path) -> None:
    case = load_case("llava15_hf")
    config = json.loads((case.directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    write_json(tmp_path / "config.json", config)
    (tmp_path / "model.safetensors").symlink_to(case.directory / "model.safetensors")
    language = vlcore.load_language_model(tmp_path)
    with pytest.raises(ConfigError, match="not for 'bitsandbytes'"):
        language.write_view(tmp_path / "view")
    assert not (tmp_path / "view").exists()


def test_the_text_part_is_a_standard_architecture(case: GoldenCase) -> None:
    language = vlcore.load_language_model(case.directory)
    is_mistral = "mistral" in case.name
    assert language.architecture == ("MistralForCausalLM" if is_mistral else "LlamaForCausalLM")
    assert language.hidden_size == 64
    assert language.context_length == (32768 if is_mistral else 4096)
    assert not any("mm_" in key or "vision" in key for key in language.config)


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_storage_gives_the_same_model(tmp_path: Path, write: Any) -> None:
    write_llava(tmp_path)
    expected = vlcore.load_language_model(tmp_path).to_transformers().state_dict()
    stored = read_all(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write(tmp_path, stored)
    state = vlcore.load_language_model(tmp_path).to_transformers().state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_stored_rotary_frequencies_are_left_alone(tmp_path: Path) -> None:
    stored = read_all(write_llava(tmp_path))
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    LAYOUTS[0](tmp_path, stored)
    model = vlcore.load_language_model(tmp_path).to_transformers()
    assert all(buffer.any() for name, buffer in model.named_buffers() if "inv_freq" in name)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    stored = read_all(write_llava(tmp_path))
    del stored["model.layers.1.mlp.up_proj.weight"]
    LAYOUTS[0](tmp_path, stored)
    with pytest.raises(TensorError, match=r"lacks 1 .*: model\.layers\.1\.mlp\.up_proj\.weight"):
        vlcore.load_language_model(tmp_path).to_transformers()


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    stored = read_all(write_llava(tmp_path))
    stored["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    LAYOUTS[0](tmp_path, stored)
    with pytest.raises(
        TensorError, match=r"does not use: model\.layers\.0\.self_attn\.q_proj\.bias"
    ):
        vlcore.load_language_model(tmp_path).to_transformers()


# -- tokens


def tokenizer_of(folder: str) -> PromptTokenizer:
    checkpoint = Checkpoint.open(GOLDEN / folder)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    return PromptTokenizer(FlatLanguageModel(checkpoint, config, {}).tokenizer())


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PromptTokenizer]:
    return {name: tokenizer_of(name) for name in ("tokenization_llava", "tokenization_nobos")}


def control_parts(prompt: str) -> list[PromptPart]:
    """Take a prompt apart at its images; all its text counts as the template's."""
    parts: list[PromptPart] = []
    for position, text in enumerate(prompt.split("<image>")):
        parts += [ImageSlot(position - 1)] if position else []
        parts += [Control(text)] if text else []
    return parts


def ids_of(tokenizer: PromptTokenizer, parts: list[PromptPart]) -> list[int]:
    """Tokenise a prompt, with one placeholder for the rows of each image."""
    num_images = sum(isinstance(part, ImageSlot) for part in parts)
    prompt = tokenizer.build(parts, [ImageLayout(NUM_ROWS)] * num_images)
    ids = list(prompt.token_ids)
    for span in reversed(prompt.spans):
        assert span.stop - span.start == NUM_ROWS
        ids[span.start : span.stop] = [IMAGE_TOKEN_ID]
    return ids


TOKENIZATIONS = [
    pytest.param(folder, line, id=f"{folder}-{line['id']}")
    for folder in ("tokenization_llava", "tokenization_nobos")
    for line in read_lines(GOLDEN / folder / "cases.jsonl")
]
PLAIN = "special_text_is_plain"


@pytest.mark.parametrize(
    ("folder", "line"), [case for case in TOKENIZATIONS if PLAIN not in str(case.id)]
)
def test_tokens_are_the_releases(
    folder: str, line: dict[str, Any], tokenizers: dict[str, PromptTokenizer]
) -> None:
    assert ids_of(tokenizers[folder], control_parts(line["prompt"])) == line["ids"]


@pytest.mark.parametrize(
    ("folder", "line"), [case for case in TOKENIZATIONS if PLAIN in str(case.id)]
)
def test_special_tokens_that_a_user_types_stay_text(
    folder: str, line: dict[str, Any], tokenizers: dict[str, PromptTokenizer]
) -> None:
    tokenizer = tokenizers[folder]
    typed = "Print <|im_end|> and </s> and ### please."
    before, after = line["prompt"].split(typed)
    parts = [*control_parts(before), Text(typed), Control(after)]
    control_ids = {token_id for token_id, _ in tokenizer.special_tokens.values()}
    placed = [token_id for token_id in ids_of(tokenizer, parts) if token_id in control_ids]
    assert placed == [token_id for token_id in line["ids"][:1] if token_id in control_ids]
    assert len(control_ids.intersection(line["ids"])) > len(placed)


def test_the_same_conversation_through_its_template() -> None:
    tokenizer = tokenizer_of("tokenization_llava")
    conversations = read_lines(GOLDEN / "prompts" / "llava_vicuna_v1.jsonl")
    template = vlcore.load_chat_template(GOLDEN / "llava15", "vicuna_v1")
    expected = {line["id"]: line["ids"] for line in read_lines(TOKENIZER / "cases.jsonl")}
    num_compared = 0
    for line in conversations:
        name = f"llava_vicuna_v1/{line['id']}"
        if name in expected and PLAIN not in name:
            parts = list(template.messages2prompt(line["messages"]))
            assert ids_of(tokenizer, parts) == expected[name], name
            num_compared += 1
    assert num_compared > 5


def test_the_tokenizer_keeps_the_dummy_prefix_before_a_space(tmp_path: Path) -> None:
    tokenizer = vlcore.load_language_model(write_llava(tmp_path)).tokenizer()
    assert tokenizer.eos_token == "</s>"
    tokens = tokenizer.convert_ids_to_tokens(
        tokenizer(" an image", add_special_tokens=False)["input_ids"]
    )
    assert "".join(tokens) == "▁▁an▁image"

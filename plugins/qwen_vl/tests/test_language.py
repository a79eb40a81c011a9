from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_json
from golden_cases import GOLDEN, GoldenCase, load_case
from PIL import Image
from qwen_checkpoints import POINTING, write_pointing_qwen, write_qwen
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from weight_files import LAYOUTS, read_all, single_safetensors

import vlcore
from vlcore import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    ContextLengthError,
    TensorError,
)

IMAGE = Image.new("RGB", (40, 30), "red")


# -- logits


@pytest.fixture(scope="module")
def case() -> GoldenCase:
    return load_case("qwen_vl")


@pytest.fixture(scope="module")
def model(case: GoldenCase) -> PreTrainedModel:
    return vlcore.load_language_model(case.directory).to_transformers("cpu", torch.float32)


def logits(model: PreTrainedModel, ids: Tensor, rows: Sequence[Tensor] = (), pad: int = -1) -> Any:
    with torch.inference_mode():
        embeddings = model.get_input_embeddings()(ids).clone()
        if rows:
            embeddings[ids == pad] = torch.cat(list(rows))
        return model(inputs_embeds=embeddings[None]).logits[0].numpy()


@pytest.mark.parametrize("prompt", ["text", "one_image", "two_images"])
def test_logits_are_the_releases(case: GoldenCase, model: PreTrainedModel, prompt: str) -> None:
    vision = vlcore.load_vision_model(case.directory)
    encoded = vision.forward([vision.preprocess(image) for image in case.images()])
    order = case.expected.get(f"{prompt}_images", np.array([], dtype=int))
    rows = [encoded[i].rows for i in order]
    ids = torch.from_numpy(case.expected[f"{prompt}_ids"])
    result = logits(model, ids, rows, case.facts["image_pad_id"])
    result = result[case.expected.get(f"{prompt}_pos", slice(None))]
    np.testing.assert_allclose(result, case.expected[f"{prompt}_logits"], **case.tolerance)


def long_case(case: GoldenCase, directory: Path, **switches: bool) -> Path:
    """Copy the case with its short ``seq_length``."""
    config = json.loads((case.directory / "config.json").read_text())
    config |= {"seq_length": case.facts["long"]["seq_length"], **switches}
    write_json(directory / "config.json", config)
    (directory / "model.safetensors").symlink_to(case.directory / "model.safetensors")
    return directory


def test_a_long_prompt_is_the_releases_with_both_switches_off(
    case: GoldenCase, tmp_path: Path
) -> None:
    long_case(case, tmp_path, use_logn_attn=False, use_dynamic_ntk=False)
    language = vlcore.load_language_model(tmp_path)
    assert language.context_length == 8192
    assert language.context_limit_reason == ""
    ids = torch.from_numpy(case.expected["long_ids"])
    result = logits(language.to_transformers("cpu", "float32"), ids)[case.expected["long_pos"]]
    np.testing.assert_allclose(result, case.expected["long_logits_logn0_ntk0"], **case.tolerance)


@pytest.mark.parametrize(
    ("switches", "named"),
    [
        ({}, "use_dynamic_ntk and use_logn_attn"),
        ({"use_logn_attn": False}, "by use_dynamic_ntk of"),
        ({"use_dynamic_ntk": False}, "by use_logn_attn of"),
    ],
)
def test_the_context_ends_where_the_release_changes_its_attention(
    case: GoldenCase, tmp_path: Path, switches: dict[str, bool], named: str
) -> None:
    language = vlcore.load_language_model(long_case(case, tmp_path, **switches))
    assert language.context_length == 64
    assert "beyond seq_length 64 the reference" in language.context_limit_reason
    assert named in language.context_limit_reason
    # It does: what Qwen2 computes there is not what the reference implementation does.
    name = f"long_logits_logn{int('use_logn_attn' not in switches)}"
    expected = case.expected[f"{name}_ntk{int('use_dynamic_ntk' not in switches)}"]
    ids = torch.from_numpy(case.expected["long_ids"])
    result = logits(language.to_transformers("cpu", "float32"), ids)[case.expected["long_pos"]]
    assert np.abs(result - expected).max() > 0.1


def test_switches_count_as_on_where_they_are_not_stated(tmp_path: Path) -> None:
    config = json.loads((GOLDEN / "qwen_vl" / "config.json").read_text())
    for key in ("use_dynamic_ntk", "use_logn_attn", "seq_length"):
        del config[key]
    write_json(tmp_path / "config.json", config)
    (tmp_path / "model.safetensors").symlink_to(GOLDEN / "qwen_vl" / "model.safetensors")
    assert vlcore.load_language_model(tmp_path).context_length == 2048


def test_a_view_computes_the_same(tmp_path: Path) -> None:
    language = vlcore.load_language_model(write_qwen(tmp_path / "checkpoint"))
    write_json(tmp_path / "checkpoint" / "generation_config.json", {"eos_token_id": 5})
    view = language.write_view(tmp_path / "view")
    loaded = AutoModelForCausalLM.from_pretrained(view, dtype=torch.float32)
    assert loaded.generation_config.eos_token_id == 5
    ids = torch.arange(40, 90)
    assert np.array_equal(logits(loaded, ids), logits(language.to_transformers(), ids))
    text = "<|im_start|>user\nWhat is <ref>this</ref>?"
    assert AutoTokenizer.from_pretrained(view)(text) == language.tokenizer()(text)


@pytest.mark.parametrize("store", LAYOUTS)
def test_a_view_computes_what_the_release_does(
    case: GoldenCase, tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = vlcore.load_vision_model(case.directory)
    encoded = vision.forward([vision.preprocess(image) for image in case.images()])
    shutil.copy(case.directory / "config.json", tmp_path / "config.json")
    store(tmp_path, read_all(case.directory))
    language = vlcore.load_language_model(tmp_path)
    # The case has no vocabulary of its own.
    monkeypatch.setattr(type(language), "write_tokenizer", lambda _, view: None)
    view = language.write_view(tmp_path / "view")
    loaded = AutoModelForCausalLM.from_pretrained(view, dtype=torch.float32)
    assert type(loaded).__name__ == "Qwen2ForCausalLM"
    for prompt in ("text", "one_image", "two_images"):
        order = case.expected.get(f"{prompt}_images", np.array([], dtype=int))
        ids = torch.from_numpy(case.expected[f"{prompt}_ids"])
        rows = [encoded[i].rows for i in order]
        result = logits(loaded, ids, rows, case.facts["image_pad_id"])
        result = result[case.expected.get(f"{prompt}_pos", slice(None))]
        np.testing.assert_allclose(result, case.expected[f"{prompt}_logits"], **case.tolerance)


def test_the_view_ends_where_qwen2_is_exact(case: GoldenCase, tmp_path: Path) -> None:
    capped = vlcore.load_language_model(case.directory)
    assert capped.context_length == capped.view_config["max_position_embeddings"] == 2048
    assert capped.view_config["architectures"] == ["Qwen2ForCausalLM"]
    assert not capped.view_config["use_sliding_window"]
    long_case(case, tmp_path, use_logn_attn=False, use_dynamic_ntk=False)
    assert vlcore.load_language_model(tmp_path).view_config["max_position_embeddings"] == 8192


def test_the_text_part_is_qwen2(tmp_path: Path) -> None:
    language = vlcore.load_language_model(write_qwen(tmp_path))
    assert language.architecture == "Qwen2ForCausalLM"
    assert language.hidden_size == 128
    assert not any("visual" in source.name for source in language.tensors.values())


# -- answers


def test_a_chat_keeps_the_marks_of_boxes(tmp_path: Path) -> None:
    with vlcore.pipeline(write_pointing_qwen(tmp_path)) as pipe:
        session = pipe.chat(("Where is the dog?", IMAGE))
        first = session.response
        session = pipe.chat("And now?", session)
        regions = pipe.template.regions(session.response.text, IMAGE.size)  # type: ignore[union-attr]
    assert first is not None
    assert (first.text, first.finish_reason) == (POINTING, "stop")
    assert first.input_token_len > 256
    assert session.response is not None
    assert session.response.text == POINTING
    assert regions == (vlcore.Region("dog", (4, 6, 28, 24)),)


def test_a_prompt_beyond_the_context_is_reported_why(tmp_path: Path) -> None:
    write_qwen(tmp_path, seq_length=400)
    with vlcore.pipeline(tmp_path) as pipe:
        answer = pipe(("Hi", IMAGE), {"max_new_tokens": 3, "ignore_eos": True})
        assert answer.generate_token_len == 3
        with pytest.raises(
            ContextLengthError, match=r"length is 400 .*, because beyond seq_length 400"
        ):
            pipe(("Hi", [IMAGE, IMAGE]))
        assert pipe.encoder_stats().num_encoded == 1


# -- bad checkpoints


def test_a_quantised_checkpoint_is_reported(tmp_path: Path) -> None:
    write_qwen(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ConfigError, match=r"quantised weights \(gptq\) are not supported"):
        vlcore.pipeline(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": None}, r"lacks the integer\(s\) vocab_size"),
        ({"hidden_size": "x"}, r"lacks the integer\(s\) hidden_size"),
        ({"seq_length": "long"}, r"lacks the integer\(s\) seq_length"),
        ({"rotary_pct": 0.5}, r"rotary_pct must be 1\.0.* it is 0\.5"),
    ],
)
def test_an_impossible_text_part_is_reported(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write_qwen(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", config | change)
    with pytest.raises(ConfigError, match=message):
        vlcore.load_language_model(tmp_path)


def test_joined_projections_of_a_wrong_width_are_reported(tmp_path: Path) -> None:
    stored = read_all(write_qwen(tmp_path))
    stored["transformer.h.0.attn.c_attn.weight"] = torch.zeros(400, 128)
    single_safetensors(tmp_path, stored)
    with pytest.raises(TensorError, match=r"c_attn\.weight gives \[144, 128\] where .*\[128, 128"):
        vlcore.load_language_model(tmp_path).to_transformers()


def test_an_unknown_bias_is_named(tmp_path: Path) -> None:
    stored = read_all(write_qwen(tmp_path))
    stored["transformer.h.0.mlp.c_proj.bias"] = torch.zeros(128)
    single_safetensors(tmp_path, stored)
    with pytest.raises(TensorError, match=r"does not use: transformer\.h\.0\.mlp\.c_proj\.bias"):
        vlcore.load_language_model(tmp_path).to_transformers()


def test_a_checkpoint_without_its_vocabulary_is_reported(tmp_path: Path) -> None:
    (write_qwen(tmp_path) / "qwen.tiktoken").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"qwen\.tiktoken cannot be read"):
        vlcore.pipeline(tmp_path)


def test_a_vocabulary_cut_short_is_reported(tmp_path: Path) -> None:
    path = write_qwen(tmp_path) / "qwen.tiktoken"
    path.write_bytes(b"\n".join(path.read_bytes().splitlines()[:-3]))
    with pytest.raises(CheckpointError, match=r"does not belong to config\.json: .*incomplete"):
        vlcore.pipeline(tmp_path)


def test_a_vocabulary_larger_than_the_embeddings_is_reported(tmp_path: Path) -> None:
    write_qwen(tmp_path, vocab_size=400)
    with pytest.raises(CheckpointError, match="of at most 400"):
        vlcore.load_language_model(tmp_path).tokenizer()

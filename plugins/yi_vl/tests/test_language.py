from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_json, write_tokenizer, write_yi
from golden_cases import GOLDEN, GoldenCase, load_case, read_lines
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from weight_files import LAYOUTS, read_all

import vlcore
from vlcore import (
    ConfigError,
    EngineError,
    ImageLayout,
    ImageSlot,
    PromptTokenizer,
    TensorError,
    Text,
)

IMAGE_TOKEN_ID = -200


@pytest.fixture(scope="module")
def case() -> GoldenCase:
    return load_case("yi_vl")


@pytest.fixture(scope="module")
def model(case: GoldenCase) -> PreTrainedModel:
    return vlcore.load_language_model(case.directory).to_transformers("cpu", torch.float32)


@pytest.fixture(scope="module")
def rows(case: GoldenCase) -> list[Tensor]:
    vision = vlcore.load_vision_model(case.directory)
    encoded = vision.forward([vision.preprocess(image) for image in case.images()])
    return [image.rows for image in encoded if not isinstance(image, Tensor)]


def logits(model: PreTrainedModel, embeddings: Tensor) -> Tensor:
    with torch.inference_mode():
        result: Tensor = model(inputs_embeds=embeddings[None]).logits[0]
    return result


def test_logits_are_the_releases(
    case: GoldenCase, model: PreTrainedModel, rows: list[Tensor]
) -> None:
    assert {"single0", "single1", "single2", "two", "text"} == set(case.prompts)
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
    assert language.view_config["architectures"] == ["LlamaForCausalLM"]
    assert not any("mm_" in key for key in language.view_config)
    view = language.write_view(tmp_path / "view")
    index = json.loads((view / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(language.tensors)
    is_linked = all(path.is_symlink() for path in view.glob("*.safetensors"))
    assert is_linked == (store in LAYOUTS[:2])
    loaded = AutoModelForCausalLM.from_pretrained(view, dtype=torch.float32)
    for prompt in case.prompts:
        with torch.inference_mode():
            embeddings = case.embeddings(prompt, loaded.get_input_embeddings(), rows)
        result = logits(loaded, embeddings)[case.expected[f"{prompt}_pos"]]
        np.testing.assert_allclose(
            result.numpy(), case.expected[f"{prompt}_logits"], err_msg=prompt, **case.tolerance
        )


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
    ],
)
def test_a_config_without_a_needed_key_is_reported(tmp_path: Path, key: str) -> None:
    write_yi(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config[key]
    write_json(tmp_path / "config.json", config)
    with pytest.raises(ConfigError, match=rf"config\.json of {tmp_path} lacks {key}, which descri"):
        vlcore.load_language_model(tmp_path)


def test_widths_that_do_not_fit_the_checkpoint_are_named(tmp_path: Path) -> None:
    write_yi(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", config | {"intermediate_size": 95})
    with pytest.raises(TensorError, match=r"down_proj\.weight gives \[64, 96\] where .*\[64, 95\]"):
        vlcore.load_language_model(tmp_path).to_transformers()


# -- tokens


def test_tokens_are_the_releases_through_template_and_tokenizer(tmp_path: Path) -> None:
    directory = write_yi(tmp_path)
    tokenizer = PromptTokenizer(vlcore.load_language_model(directory).tokenizer())
    template = vlcore.load_chat_template(directory)
    expected = {
        line["id"].removeprefix("yi_vl/"): line["ids"]
        for line in read_lines(GOLDEN / "tokenization_nobos" / "cases.jsonl")
    }
    conversations = read_lines(GOLDEN / "prompts" / "yi_vl.jsonl")
    num_compared = 0
    for line in conversations:
        if line["id"] == "special_text_is_plain":  # the reference reads a typed </s> as the token
            continue
        parts = template.messages2prompt(line["messages"])
        prompt = tokenizer.build(parts, [ImageLayout(3)] * line["n_images"], template)
        ids = list(prompt.token_ids)
        for span in reversed(prompt.spans):
            ids[span.start : span.stop] = [IMAGE_TOKEN_ID]
        assert ids == expected[line["id"]], line["id"]
        num_compared += 1
    assert num_compared == len(conversations) - 1


def test_tokens_are_sentencepieces_where_there_is_no_dummy_prefix(tmp_path: Path) -> None:
    directory = write_yi(tmp_path)
    write_tokenizer(directory, has_dummy_prefix=False)
    tokenizer = PromptTokenizer(vlcore.load_language_model(directory).tokenizer())
    processor = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    template = vlcore.load_chat_template(directory)
    for line in read_lines(GOLDEN / "prompts" / "yi_vl.jsonl"):
        if line["id"] == "special_text_is_plain":
            continue
        parts = template.messages2prompt(line["messages"])
        prompt = tokenizer.build(parts, [ImageLayout(1)] * line["n_images"], template)
        first, *others = (processor.encode(chunk) for chunk in line["prompt"].split("<image>"))
        filler = [PromptTokenizer.filler_id]
        assert list(prompt.token_ids) == first + [i for ids in others for i in filler + ids]


def test_there_is_no_beginning_token(tmp_path: Path) -> None:
    tokenizer = vlcore.load_language_model(write_yi(tmp_path)).tokenizer()
    assert tokenizer.bos_token_id is not None
    prompt = PromptTokenizer(tokenizer).build([ImageSlot(0), Text("x")], [ImageLayout(2)])
    assert prompt.spans[0].start == 0
    assert tokenizer.bos_token_id not in prompt.token_ids


# -- an embedding of fewer rows than the tokenizer has tokens


@pytest.fixture
def short_of_rows(tmp_path: Path) -> Path:
    """A checkpoint whose tokenizer adds two tokens that have no row."""
    directory = write_yi(tmp_path)
    path = directory / "tokenizer_config.json"
    added = {
        "900": {"content": "<|mark|>", "special": True},
        "901": {"content": "unheardof", "special": False},
    }
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    added = {token_id: token | flags for token_id, token in added.items()}
    write_json(path, json.loads(path.read_text()) | {"added_tokens_decoder": added})
    assert len(vlcore.load_language_model(directory).tokenizer()) == 902
    return directory


def test_ordinary_prompts_work_with_fewer_rows_than_tokens(short_of_rows: Path) -> None:
    with vlcore.pipeline(short_of_rows) as pipe:
        for text in ("What is this?", "What is <|mark|>?"):
            answer = pipe(text, {"max_new_tokens": 3, "ignore_eos": True})
            assert answer.generate_token_len == 3
            assert max(answer.token_ids) < 900


def test_a_prompt_with_a_token_that_has_no_row_is_refused_alone(short_of_rows: Path) -> None:
    with vlcore.pipeline(short_of_rows) as pipe:
        with pytest.raises(EngineError, match=r"must be in 0\.\.899"):
            pipe("What is unheardof?")
        answers = pipe(["What is unheardof?", "Hi"], {"max_new_tokens": 2})
    assert [answer.finish_reason == "error" for answer in answers] == [True, False]

"""Every family reads, encodes and answers as transformers' own processor and model do.

The stages of a family are compared one after another: the token ids of six conversations, the
inputs of the language model, and the answers to all of them at the same time.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers_families.comparison import assert_close, compare_inputs, compare_token_ids
from transformers_families.conversations import (
    LONG,
    OTHER,
    TALL,
    WIDE,
    reference_prompt,
    unusual_conversations,
)
from transformers_families.families import FAMILIES as TINY
from transformers_families.page import known_architectures, needs, read_needs
from transformers_families.runs import (
    PLUGIN,
    Answer,
    FamilyReference,
    answer_concurrently,
    make_reference,
)
from vl_plugin_transformers.families import FAMILIES

import vlcore
from vlcore import ConfigError, ImageError

FAST = ("internvl", "qwen2_vl", "qwen3_vl", "gemma3", "qwen3_5")
"""Tiles, packed patches with M-RoPE, deepstack, attention groups, recurrent states."""


def _parameter(name: str) -> Any:
    missing = [
        package for package in TINY[name].requires if importlib.util.find_spec(package) is None
    ]
    marks = [] if name in FAST else [pytest.mark.slow]
    if missing:
        reason = f"{' and '.join(missing)} not installed; make test-torchvision brings it"
        marks.append(pytest.mark.skip(reason=reason))
    return pytest.param(name, marks=marks)


every_family = pytest.mark.parametrize("name", [_parameter(name) for name in sorted(FAMILIES)])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    directory = tmp_path_factory.mktemp("families")
    yield cache(lambda name: make_reference(directory / name, name))
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def answers(reference: Callable[[str], FamilyReference]) -> Callable[[str], dict[str, Answer]]:
    def answer(name: str) -> dict[str, Answer]:
        expected = reference(name)
        return answer_concurrently(expected.checkpoint.directory, expected.prompts)

    return cache(answer)


@every_family
def test_reference_tells_conversations_apart(
    name: str, reference: Callable[[str], FamilyReference]
) -> None:
    expected = reference(name).expected.values()
    assert len({tuple(prompt.answer) for prompt in expected}) >= 5
    assert len({token for prompt in expected for token in prompt.answer}) >= 10


@every_family
def test_token_ids(
    name: str,
    reference: Callable[[str], FamilyReference],
    answers: Callable[[str], dict[str, Answer]],
) -> None:
    for label, expected in reference(name).expected.items():
        compare_token_ids(answers(name)[label], expected, label)


@every_family
def test_inputs_of_the_language_model(
    name: str,
    reference: Callable[[str], FamilyReference],
    answers: Callable[[str], dict[str, Answer]],
) -> None:
    for label, expected in reference(name).expected.items():
        compare_inputs(answers(name)[label], expected, label)


@every_family
def test_answers(
    name: str,
    reference: Callable[[str], FamilyReference],
    answers: Callable[[str], dict[str, Answer]],
    record_property: Callable[[str, object], None],
) -> None:
    actual = answers(name)
    expected = reference(name).expected
    assert {label: answer.token_ids for label, answer in actual.items()} == {
        label: prompt.answer for label, prompt in expected.items()
    }
    requests = [answer.request for answer in actual.values() if answer.request]
    record_property(
        "family",
        {
            "name": name,
            "positions": any(request.inputs.position_ids is not None for request in requests),
            "deepstack": any(prompt.deepstack is not None for prompt in expected.values()),
        },
    )


@every_family
def test_embeddings_of_an_image_do_not_depend_on_the_batch(
    name: str, reference: Callable[[str], FamilyReference]
) -> None:
    model = vlcore.load_vision_model(reference(name).checkpoint.directory, plugin=PLUGIN)
    inputs = [model.preprocess(image) for image in (WIDE, TALL, OTHER, LONG)]
    together = [_rows(image) for image in model(inputs)]
    for image, rows in zip(inputs, together, strict=True):
        (alone,) = model([image])
        assert_close(rows, _rows(alone), name)


@every_family
@pytest.mark.slow
def test_unusual_images_are_read_as_transformers_reads_them_or_refused(
    name: str, reference: Callable[[str], FamilyReference]
) -> None:
    checkpoint, prompts = reference(name).checkpoint, unusual_conversations()
    answers = answer_concurrently(checkpoint.directory, prompts)
    for label, messages in prompts.items():
        try:
            expected = reference_prompt(checkpoint, messages)
        except (ValueError, RuntimeError):  # transformers itself refuses it, or fails
            error = answers[label].error
            assert error is None or (isinstance(error, ImageError) and "image 1 of" in str(error))
        else:
            compare_token_ids(answers[label], expected, label)
            compare_inputs(answers[label], expected, label)


@every_family
@pytest.mark.slow
def test_a_text_view_has_an_architecture_of_transformers(
    name: str,
    reference: Callable[[str], FamilyReference],
    record_property: Callable[[str, object], None],
) -> None:
    directory = reference(name).checkpoint.directory
    model = vlcore.load_language_model(directory, plugin=PLUGIN)
    architecture = ""
    if not model.requires:
        try:
            (architecture,) = model.view_config["architectures"]
        except ConfigError as error:
            assert "no text-only class" in str(error)  # noqa: PT017
        else:
            assert architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    record_property(
        "family",
        {
            "name": name,
            "architecture": architecture,
            "TurboMind": architecture in known_architectures("turbomind"),
            "vLLM": architecture in known_architectures("vllm"),
        },
    )


def test_the_page_lists_every_family_and_what_it_needs() -> None:
    assert read_needs() == {name: needs(name) for name in FAMILIES}


@pytest.mark.slow
@pytest.mark.parametrize("text_type", ["gpt_oss", "llama", "qwen3", "qwen3_moe"])
def test_a_family_with_another_language_model(text_type: str, tmp_path: Path) -> None:
    expected = make_reference(tmp_path / "model", "internvl", text_type=text_type)
    answers = answer_concurrently(expected.checkpoint.directory, expected.prompts)
    assert {label: answer.token_ids for label, answer in answers.items()} == {
        label: prompt.answer for label, prompt in expected.expected.items()
    }


def _rows(image: torch.Tensor | vlcore.ImageRows) -> torch.Tensor:
    return image if isinstance(image, torch.Tensor) else image.rows

"""Videos are read, encoded and answered as transformers' own processors and models do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from transformers_families.comparison import compare_inputs, compare_token_ids
from transformers_families.conversations import video_conversations
from transformers_families.runs import (
    Answer,
    FamilyReference,
    answer_concurrently,
    make_reference,
)
from vl_plugin_transformers.families import FAMILIES

FAST = ("qwen2_5_vl",)
"""M-RoPE with times."""

every_family = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
        for name, family in sorted(FAMILIES.items())
        if family.video
    ],
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    directory = tmp_path_factory.mktemp("videos")
    yield cache(lambda name: make_reference(directory / name, name, prompts=video_conversations()))
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def answers(reference: Callable[[str], FamilyReference]) -> Callable[[str], dict[str, Answer]]:
    def answer(name: str) -> dict[str, Answer]:
        expected = reference(name)
        return answer_concurrently(expected.checkpoint.directory, expected.prompts)

    return cache(answer)


@every_family
def test_videos_equal_those_of_transformers(
    name: str,
    reference: Callable[[str], FamilyReference],
    answers: Callable[[str], dict[str, Answer]],
) -> None:
    expected = reference(name).expected
    for label, prompt in expected.items():
        compare_token_ids(answers(name)[label], prompt, label)
        compare_inputs(answers(name)[label], prompt, label)
    assert {label: answer.token_ids for label, answer in answers(name).items()} == {
        label: prompt.answer for label, prompt in expected.items()
    }

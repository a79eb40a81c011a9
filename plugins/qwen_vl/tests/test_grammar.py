"""Boxes as a grammar, with the vocabulary of Qwen-VL."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from qwen_checkpoints import POINTING, write_pointing_qwen

import vlcore
from vlcore import Grammar

NUMBER = "([0-9]{1,3}|1000)"
CORNER = rf"\({NUMBER},{NUMBER}\)"
BOX = rf"<ref>[a-z ]{{1,40}}</ref><box>{CORNER},{CORNER}</box>"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[vlcore.Pipeline]:
    checkpoint = write_pointing_qwen(tmp_path_factory.mktemp("qwen"))
    with vlcore.pipeline(checkpoint, device="cpu", dtype="float32") as pipe:
        yield pipe


def test_the_tokens_of_boxes_match_by_their_text(pipe: vlcore.Pipeline) -> None:
    free = pipe("Where is the dog?", {"max_new_tokens": 40})
    answer = pipe("Where is the dog?", {"grammar": Grammar.regex(BOX), "max_new_tokens": 40})
    assert answer.text == free.text == POINTING
    assert answer.token_ids == free.token_ids
    (region,) = pipe.template.regions(answer.text, (1000, 1000))
    assert (region.label, region.box) == ("dog", (100, 200, 700, 800))


def test_every_sampled_answer_is_a_box(pipe: vlcore.Pipeline) -> None:
    options = {"do_sample": True, "temperature": 100.0, "top_k": 0, "random_seed": 1, "n": 4}
    answer = pipe("Where?", options | {"grammar": Grammar.regex(BOX), "max_new_tokens": 100})
    texts = {choice.text for choice in answer.choices}
    assert len(texts) == 4
    assert all(re.fullmatch(BOX, text) for text in texts)


def test_bytes_of_a_character_are_followed(pipe: vlcore.Pipeline) -> None:
    grammar = Grammar.choice(["日本語", "한국어", "🙂"])
    answer = pipe("Hi", {"grammar": grammar, "do_sample": True, "temperature": 9.0, "n": 4})
    assert {choice.text for choice in answer.choices} <= {"日本語", "한국어", "🙂"}

from __future__ import annotations

import json
import random

import pytest
from tokenizer_kinds import (
    CONTROL,
    GOLDEN,
    sentencepiece,
    wrap,
)
from tokenizers import (
    pre_tokenizers,
)
from transformers import PreTrainedTokenizerBase

from vlcore.prompts.chat_template import RoleTemplate
from vlcore.prompts.messages import Control, ImageSlot, PromptPart, Text
from vlcore.prompts.tokenization import ImageLayout, PromptTokenizer

WORDS = ["hello", " x", "\n", "  ", "a", "é", "猫", "🙂", "mall", ".", "1", "\t", "in", " one"]


def test_random_parts_give_the_ids_of_their_text(tokenizer: PreTrainedTokenizerBase) -> None:
    draw = random.Random(0)
    prompt = PromptTokenizer(tokenizer)
    for _ in range(60):
        parts = [
            Text(word) if draw.random() < 0.5 else Control(word)
            for word in draw.choices(WORDS, k=draw.randint(1, 8))
        ]
        whole = "".join(part.text for part in parts)
        assert list(prompt.build(parts).token_ids) == tokenizer(whole)["input_ids"], whole


def test_random_parts_with_special_tokens_give_the_ids_of_their_text(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    draw = random.Random(1)
    prompt = PromptTokenizer(tokenizer)
    known = [text for text in CONTROL[1:] if text in prompt.special_tokens]
    for _ in range(60):
        parts: list[Text | Control] = [
            Control(draw.choice(known)) if draw.random() < 0.4 else Text(draw.choice(WORDS))
            for _ in range(draw.randint(1, 8))
        ]
        whole = "".join(part.text for part in parts)
        assert list(prompt.build(parts).token_ids) == tokenizer(whole)["input_ids"], whole


@pytest.mark.parametrize("name", ["llava", "nobos"])
def test_prompts_of_the_reference_implementation_give_its_ids(name: str) -> None:
    tokenizer = PromptTokenizer(sentencepiece(f"tokenization_{name}"))
    cases = (GOLDEN / f"tokenization_{name}" / "cases.jsonl").read_text().splitlines()
    assert len(cases) > 10
    for case in map(json.loads, cases):
        if "special_text_is_plain" in case["id"]:  # vlcore keeps typed special tokens text
            continue
        chunks = case["prompt"].split("<image>")
        parts: list[PromptPart] = [Control(chunks[0])]
        for index, chunk in enumerate(chunks[1:]):
            parts += (ImageSlot(index), Control(chunk))
        prompt = tokenizer.build(parts, [ImageLayout(1)] * (len(chunks) - 1))
        image_positions = {span.start for span in prompt.spans}
        actual = [-200 if i in image_positions else t for i, t in enumerate(prompt.token_ids)]
        assert actual == case["ids"], case["id"]


@pytest.mark.parametrize("restarts", [True, False])
def test_text_after_an_image_is_tokenized_like_a_beginning_or_a_continuation(
    restarts: bool,
) -> None:
    tokenizer = sentencepiece("tokenization_llava")
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    prompt_tokenizer = PromptTokenizer(wrap(backend))
    template = RoleTemplate("", "", "", restarts_after_image=restarts)
    prompt = prompt_tokenizer.build([ImageSlot(0), Text("this")], [ImageLayout(1)], template)
    ids = list(prompt.token_ids[prompt.spans[0].stop :])
    assert ids == prompt_tokenizer.encode_plain("this", first=restarts)
    assert prompt_tokenizer.encode_plain("this", first=True) != prompt_tokenizer.encode_plain(
        "this", first=False
    )

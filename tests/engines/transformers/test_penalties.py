from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
import torch
from engine_requests import answer, request, run
from waits import TIMEOUT_S

from vlcore.engines.generation import GenerationConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.engines.transformers.sampler import Sampler
from vlcore.errors import OptionError

CPU = torch.device("cpu")
GENERATED = [3, 1, 3, 3, 7, 1]


def scores(logits: torch.Tensor, prompt: tuple[int, ...] = (), **options: Any) -> torch.Tensor:
    """The scores of the next token after ``GENERATED``."""
    sampler = Sampler(GenerationConfig(**options), prompt, (), CPU)
    for token_id in GENERATED:
        sampler.draw(logits)
        sampler.record(token_id)
    return sampler._scores(logits)


@pytest.mark.parametrize(
    "options",
    [
        {"frequency_penalty": 0.5},
        {"frequency_penalty": -1.25},
        {"presence_penalty": 1.5},
        {"presence_penalty": -2},
        {"logit_bias": {3: 100, 0: -2.5, 8: 1}},
        {"frequency_penalty": 2, "presence_penalty": 0.25, "logit_bias": {7: -0.5}},
    ],
)
def test_scores_are_those_of_openais_formula(options: dict[str, Any]) -> None:
    logits = torch.linspace(-4, 4, 9)
    count = Counter(GENERATED)
    expected = [
        logit
        + options.get("logit_bias", {}).get(token_id, 0)
        - count[token_id] * options.get("frequency_penalty", 0)
        - (count[token_id] > 0) * options.get("presence_penalty", 0)
        for token_id, logit in enumerate(logits.tolist())
    ]
    # The prompt, which contains other tokens, is not counted.
    torch.testing.assert_close(scores(logits, (2, 4, 4), **options), torch.tensor(expected))
    assert logits.equal(torch.linspace(-4, 4, 9))


def test_a_repetition_penalty_applies_between_the_bias_and_the_other_penalties() -> None:
    logits = torch.tensor([1.0, 2.0, 3.0, -4.0, 0.0, 0.0, 0.0, 6.0])
    options: dict[str, Any] = {"repetition_penalty": 2.0, "frequency_penalty": 0.5}
    penalized = scores(logits, (2,), **options, presence_penalty=1, logit_bias={7: 2})
    expected = [1.0, 2.0 / 2 - 2, 3.0 / 2, -4.0 * 2 - 2.5, 0.0, 0.0, 0.0, (6 + 2) / 2 - 1.5]
    torch.testing.assert_close(penalized, torch.tensor(expected))


def test_answers_of_the_engine_follow_the_formula_and_ignore_the_image(
    engine: TransformersEngine,
) -> None:
    """The greedy answer is the argmax of the model's logits less the penalties at every step."""
    options: dict[str, Any] = {"frequency_penalty": 1.5, "presence_penalty": 0.75}
    bias = {5: 3.0, 9: -7.0}

    async def body() -> None:
        asked = request(
            8, image_rows=4, max_new_tokens=24, output_logits="generation", logit_bias=bias,
            **options,
        )  # fmt: skip
        outputs = [output async for output in engine.generate(asked)]
        count: Counter[int] = Counter()
        for output in outputs:
            assert output.logits is not None
            expected = output.logits[0].clone()
            for token_id, value in bias.items():
                expected[token_id] += value
            for token_id, number in count.items():
                expected[token_id] -= number * 1.5 + 0.75
            assert output.token_ids == (int(expected.argmax()),)
            count.update(output.token_ids)
        assert len(count) > len(set(await answer(engine, request(8, image_rows=4)))) > 0

    run(body)


def test_a_bias_of_100_selects_and_one_of_minus_100_bans(engine: TransformersEngine) -> None:
    async def body() -> None:
        (first, *_) = await answer(engine, request(6))
        assert first not in await answer(engine, request(6, logit_bias={first: -100}))
        selected = await answer(engine, request(6, logit_bias={42: 100}, n=2, do_sample=True))
        assert set(selected) == {42}

    run(body)


def test_a_bias_on_a_token_outside_of_the_vocabulary_is_refused(engine: TransformersEngine) -> None:
    async def body() -> None:
        with pytest.raises(OptionError, match="token ids of logit_bias must be in"):
            await asyncio.wait_for(answer(engine, request(4, logit_bias={700: 1})), TIMEOUT_S)

    run(body)

from __future__ import annotations

from typing import Any

import pytest
import torch

from vlcore.engines.generation import GenerationConfig
from vlcore.engines.transformers.sampler import INVALID_TOKEN_ID, Sampler, choose_tokens

CPU = torch.device("cpu")
LOGITS = torch.log(torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]))


def sampler(prompt: tuple[int, ...] = (), end: tuple[int, ...] = (), **options: Any) -> Sampler:
    return Sampler(GenerationConfig(**options), prompt, end, CPU)


def draw(sampled: Sampler, logits: torch.Tensor) -> int:
    return int(sampled.draw(logits))


def drawn(num_draws: int = 200, **options: Any) -> set[int]:
    """Every token that comes up; at 200 draws one of probability 0.05 stays away at 3e-5."""
    draws = sampler(**{"do_sample": True, "temperature": 1.0, "random_seed": 0} | options)
    return {draw(draws, LOGITS) for _ in range(num_draws)}


def test_greedy_takes_the_most_likely() -> None:
    greedy = sampler()
    assert greedy.is_greedy()
    assert draw(greedy, LOGITS) == 0
    assert draw(greedy, LOGITS.flip(0)) == 4


def test_only_greedy_decoding_without_a_penalty_is_plain_argmax() -> None:
    assert not sampler(do_sample=True).is_greedy()
    assert not sampler(repetition_penalty=1.5).is_greedy()
    assert not sampler(bad_token_ids=[3]).is_greedy()
    for name in ("frequency_penalty", "presence_penalty"):
        penalized: dict[str, Any] = {name: -0.5}
        assert not sampler(**penalized).is_greedy()
    assert not sampler(logit_bias={3: 1.0}).is_greedy()
    early = sampler(end=(4,), min_new_tokens=2)
    early.record(0)
    assert not early.is_greedy()
    early.record(0)
    assert early.is_greedy()
    assert sampler(temperature=2.0, top_k=3, top_p=0.5, min_p=0.5).is_greedy()


def test_a_seed_repeats_the_draws() -> None:
    def draws(seed: int | None) -> list[int]:
        sampled = sampler(do_sample=True, random_seed=seed, temperature=5.0)
        return [draw(sampled, LOGITS) for _ in range(64)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert draws(None) != draws(None)


def test_sampling_of_one_request_does_not_affect_another() -> None:
    options: dict[str, Any] = {"do_sample": True, "random_seed": 3, "temperature": 5.0}
    alone, interleaved = sampler(**options), sampler(**options)
    expected = [draw(alone, LOGITS) for _ in range(32)]
    other = sampler(do_sample=True, random_seed=4)
    mixed = []
    for _ in range(32):
        draw(other, LOGITS)
        torch.rand(1)
        mixed.append(draw(interleaved, LOGITS))
    assert mixed == expected


def test_sampling_follows_the_probabilities() -> None:
    sampled = sampler(do_sample=True, temperature=1.0, random_seed=0)
    counts = torch.zeros(5)
    for _ in range(2000):
        counts[draw(sampled, LOGITS)] += 1
    assert torch.allclose(counts / 2000, LOGITS.exp(), atol=0.04)


def test_a_low_temperature_is_nearly_greedy() -> None:
    assert drawn(temperature=0.01) == {0}
    assert drawn() == {0, 1, 2, 3, 4}


def test_top_k_of_one_is_greedy() -> None:
    assert drawn(top_k=1) == {0}


@pytest.mark.parametrize(
    ("options", "support"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 0}, {0, 1, 2, 3, 4}),
        ({"top_k": 100}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.65}, {0, 1}),
        ({"top_p": 0.01}, {0}),
        ({"min_p": 0.3}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 4, "min_p": 0.3, "top_p": 0.75}, {0, 1, 2}),
    ],
)
def test_unlikely_tokens_are_left_out(options: dict[str, Any], support: set[int]) -> None:
    assert drawn(**options) == support


def test_a_repetition_penalty_counts_prompt_and_answer() -> None:
    logits = torch.tensor([3.0, 2.9, 2.8, -1.0])
    penalised = sampler((0,), repetition_penalty=1.5)
    assert draw(penalised, logits) == 1
    penalised.record(1)
    assert draw(penalised, logits) == 2
    assert draw(sampler((0, 1, 2), repetition_penalty=1.01), logits) == 0


def test_a_repetition_penalty_works_without_a_text() -> None:
    assert draw(sampler(repetition_penalty=1.5), LOGITS) == 0


def test_no_end_token_is_generated_before_min_new_tokens() -> None:
    forbids = sampler(end=(0, 1), min_new_tokens=2)
    tokens = []
    for _ in range(3):
        tokens.append(draw(forbids, LOGITS))
        forbids.record(tokens[-1])
    assert tokens == [2, 2, 0]
    assert drawn(end=(0, 1), min_new_tokens=1) == {2, 3, 4}


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_p": 0}, {"top_k": 1}])
def test_sampling_options_can_select_the_most_likely_token(options: dict[str, Any]) -> None:
    assert sampler(do_sample=True, **options).is_greedy()
    assert drawn(**options) == {0}
    assert drawn(bad_token_ids=[0], **options) == {1}


def test_top_k_of_minus_one_draws_from_all_tokens() -> None:
    assert drawn(top_k=-1) == drawn(top_k=0) == {0, 1, 2, 3, 4}


def test_banned_tokens_are_never_drawn() -> None:
    assert draw(sampler(bad_token_ids=[0, 1]), LOGITS) == 2
    assert drawn(bad_token_ids=[0, 4]) == {1, 2, 3}
    assert drawn(bad_token_ids=[0], end=(1,), min_new_tokens=1) == {2, 3, 4}


@pytest.mark.parametrize("temperature", [0, 1e-46, 1e-30, 1e-6, 1e-4, 100.0])
def test_no_temperature_overflows(temperature: float) -> None:
    expected = {0} if temperature < 1 else {0, 1, 2, 3, 4}
    options: dict[str, Any] = {"do_sample": True, "random_seed": 0, "top_k": 0}
    sampled = sampler(temperature=temperature, **options)
    assert {
        draw(sampled, LOGITS * 1e4 if temperature < 1 else LOGITS) for _ in range(99)
    } == expected


def test_options_that_produce_nan_affect_their_own_sequence_only() -> None:
    extreme = sampler((0, 1, 2, 3, 4), do_sample=True, random_seed=0, repetition_penalty=1e-40)
    rows = torch.stack([LOGITS + 4] * 3)
    chosen = choose_tokens(rows, [sampler(), extreme, sampler()])
    assert chosen.tolist() == [0, INVALID_TOKEN_ID, 0]


def test_the_answers_of_one_request_draw_differently() -> None:
    config = GenerationConfig(n=2, do_sample=True, random_seed=2**64 - 1, temperature=5.0)
    samplers = [Sampler(config, (), (), CPU, choice) for choice in (0, 1, 1)]
    first, second, again = ([draw(one, LOGITS) for _ in range(64)] for one in samplers)
    assert first != second
    assert second == again


def test_most_likely_returns_the_most_likely_allowed_tokens() -> None:
    ranking = sampler((1,), bad_token_ids=[2], repetition_penalty=2.0)
    assert ranking.most_likely(LOGITS, 3) == [0, 3, 1]
    assert ranking.most_likely(LOGITS, 99) == [0, 3, 1, 4]


def test_drawing_from_given_tokens_returns_no_other() -> None:
    assert int(sampler().draw_from([3, 1, 4], LOGITS)) == 1
    sampled = sampler(do_sample=True, random_seed=0, temperature=1.0, top_k=3)
    assert {int(sampled.draw_from([3, 4], LOGITS)) for _ in range(99)} == {3, 4}


# -- all rows of a batch


def test_every_sequence_is_sampled_with_its_own_options() -> None:
    samplers = [sampler(), sampler(bad_token_ids=[0]), sampler(do_sample=True, top_k=1), sampler()]
    rows = torch.stack([LOGITS, LOGITS, LOGITS, LOGITS.flip(0)])
    assert choose_tokens(rows, samplers).tolist() == [0, 1, 0, 4]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("do_sample", [False, True])
def test_logits_that_are_not_finite_affect_their_own_sequence_only(
    value: float, do_sample: bool
) -> None:
    rows = torch.stack([LOGITS, LOGITS, LOGITS])
    rows[1, 3] = value
    options: dict[str, Any] = {"do_sample": do_sample, "top_k": 1}
    assert choose_tokens(rows, [sampler(**options) for _ in rows]).tolist() == [
        0,
        INVALID_TOKEN_ID,
        0,
    ]
    rows[1] = -torch.inf
    assert choose_tokens(rows, [sampler(**options) for _ in rows]).tolist() == [
        0,
        INVALID_TOKEN_ID,
        0,
    ]


def test_logits_are_not_changed() -> None:
    logits = LOGITS.clone()
    options: dict[str, Any] = {"repetition_penalty": 2.0, "min_new_tokens": 1, "top_k": 2}
    draw(sampler((0,), (1,), do_sample=True, **options), logits)
    choose_tokens(logits[None], [sampler((0,), (1,), do_sample=True, **options)])
    assert torch.equal(logits, LOGITS)

from __future__ import annotations

from typing import Any

import pytest
import torch

from vlcore.engines.base import GenerationConfig
from vlcore.engines.sampler import Sampler

CPU = torch.device("cpu")
LOGITS = torch.log(torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]))


def sampler(prompt: tuple[int, ...] = (), end: tuple[int, ...] = (), **options: Any) -> Sampler:
    return Sampler(GenerationConfig(**options), prompt, end, CPU)


def drawn(num_draws: int = 200, **options: Any) -> set[int]:
    """Every token that comes up; at 200 draws one of probability 0.05 stays away at 3e-5."""
    draws = sampler(**{"do_sample": True, "temperature": 1.0, "random_seed": 0} | options)
    return {draws.draw(LOGITS, []) for _ in range(num_draws)}


def test_greedy_takes_the_most_likely() -> None:
    greedy = sampler()
    assert greedy.takes_argmax(0)
    assert greedy.draw(LOGITS, []) == 0
    assert greedy.draw(LOGITS.flip(0), []) == 4


def test_only_greedy_without_a_penalty_is_plain_argmax() -> None:
    assert not sampler(do_sample=True).takes_argmax(0)
    assert not sampler(repetition_penalty=1.5).takes_argmax(0)
    assert not sampler(min_new_tokens=2).takes_argmax(1)
    assert sampler(min_new_tokens=2).takes_argmax(2)
    assert sampler(temperature=2.0, top_k=3, top_p=0.5, min_p=0.5).takes_argmax(0)


def test_a_seed_repeats_the_draws() -> None:
    def draws(seed: int | None) -> list[int]:
        sampled = sampler(do_sample=True, random_seed=seed, temperature=5.0)
        return [sampled.draw(LOGITS, []) for _ in range(64)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert draws(None) != draws(None)


def test_draws_of_one_request_do_not_disturb_another() -> None:
    options: dict[str, Any] = {"do_sample": True, "random_seed": 3, "temperature": 5.0}
    alone, beside = sampler(**options), sampler(**options)
    expected = [alone.draw(LOGITS, []) for _ in range(32)]
    other = sampler(do_sample=True, random_seed=4)
    mixed = []
    for _ in range(32):
        other.draw(LOGITS, [])
        torch.rand(1)
        mixed.append(beside.draw(LOGITS, []))
    assert mixed == expected


def test_sampling_follows_the_probabilities() -> None:
    sampled = sampler(do_sample=True, temperature=1.0, random_seed=0)
    counts = torch.zeros(5)
    for _ in range(2000):
        counts[sampled.draw(LOGITS, [])] += 1
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
    assert sampler((0,), repetition_penalty=1.5).draw(logits, []) == 1
    assert sampler((0,), repetition_penalty=1.5).draw(logits, [1]) == 2
    assert sampler((0, 1, 2), repetition_penalty=1.01).draw(logits, []) == 0


def test_a_repetition_penalty_works_without_a_text() -> None:
    assert sampler(repetition_penalty=1.5).draw(LOGITS, []) == 0


def test_no_end_comes_before_the_least_number_of_tokens() -> None:
    forbids = sampler(end=(0, 1), min_new_tokens=2)
    assert [forbids.draw(LOGITS, [9] * count) for count in range(3)] == [2, 2, 0]
    assert drawn(end=(0, 1), min_new_tokens=1) == {2, 3, 4}


def test_an_end_outside_the_vocabulary_is_no_matter() -> None:
    assert sampler(end=(0, 5, 700), min_new_tokens=1).draw(LOGITS, []) == 1


def test_logits_are_not_changed() -> None:
    logits = LOGITS.clone()
    options: dict[str, Any] = {"repetition_penalty": 2.0, "min_new_tokens": 1, "top_k": 2}
    sampler((0,), (1,), do_sample=True, **options).draw(logits, [])
    assert torch.equal(logits, LOGITS)

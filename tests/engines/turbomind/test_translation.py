from __future__ import annotations

from typing import Any

import pytest

from vlcore.engines.external.continuation import Continuation
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.turbomind.translation import check_options, to_turbomind
from vlcore.errors import OptionError


def options(config: GenerationConfig | None = None, **facts: Any) -> dict[str, Any]:
    stated: dict[str, Any] = {"end_token_ids": [2], "max_new_tokens": 8} | facts
    return to_turbomind(Continuation(config=config or GenerationConfig(), **stated), [2])


@pytest.mark.parametrize(
    "greedy",
    [
        {"temperature": 0.3, "top_k": 9},
        {"do_sample": True, "temperature": 0, "top_k": 9},
        {"do_sample": True, "top_p": 0, "top_k": 5000},
        {"do_sample": True, "top_k": 1},
    ],
)
def test_greedy_decoding_samples_from_one_token(greedy: dict[str, Any]) -> None:
    config = GenerationConfig(**{"top_p": 0.5, "min_p": 0.5} | greedy)
    made = options(config)
    check_options(config, [])
    assert made["do_sample"] is False
    assert (made["top_k"], made["temperature"], made["top_p"], made["min_p"]) == (1, 1, 1, 0)


@pytest.mark.parametrize("top_k", [0, -1])
def test_sampling_keeps_its_options(top_k: int) -> None:
    made = options(
        GenerationConfig(do_sample=True, temperature=0.3, top_k=top_k, top_p=0.5, min_p=0.25)
    )
    assert (made["top_k"], made["temperature"], made["top_p"], made["min_p"]) == (0, 0.3, 0.5, 0.25)


@pytest.mark.parametrize(
    ("seed", "choice", "num_generated", "expected"),
    [(7, 0, 0, 7), (7, 2, 0, 9), (7, 0, 3, 10), (2**64 - 1, 1, 0, 0)],
)
def test_each_answer_and_each_continuation_has_its_own_seed(
    seed: int, choice: int, num_generated: int, expected: int
) -> None:
    config = GenerationConfig(do_sample=True, random_seed=seed)
    assert options(config, choice=choice, num_generated=num_generated)["random_seed"] == expected


def test_without_a_seed_each_request_has_a_new_one() -> None:
    config = GenerationConfig(do_sample=True)
    assert len({options(config)["random_seed"] for _ in range(8)}) == 8


def test_banned_tokens_are_added_to_bad_token_ids() -> None:
    made = options(GenerationConfig(bad_token_ids=(5, 3)), banned_token_ids=[4, 5])
    assert made["bad_token_ids"] == [3, 4, 5]


def test_generated_tokens_count_towards_min_new_tokens() -> None:
    config = GenerationConfig(min_new_tokens=3)
    lengths = [options(config, num_generated=n)["min_new_tokens"] for n in (0, 2, 5)]
    assert lengths == [3, 1, 0]


def test_a_request_without_end_tokens_ignores_those_of_the_model() -> None:
    made = options(end_token_ids=[9, 2])
    assert (made["stop_token_ids"], made["ignore_eos"]) == ([2, 9], False)
    made = options(GenerationConfig(min_new_tokens=2), end_token_ids=[])
    assert (made["stop_token_ids"], made["ignore_eos"]) == ([2], True)
    assert made["min_new_tokens"] == 0


@pytest.mark.parametrize(
    ("asked", "num_generated", "expected"),
    [
        ({}, 0, None),
        ({"logprobs": 0}, 0, "generation"),
        ({"output_logits": "generation"}, 0, "generation"),
        ({"output_logits": "all", "logprobs": 2}, 0, "all"),
        ({"output_logits": "all"}, 3, "generation"),
    ],
)
def test_logits_are_requested_where_they_are_needed(
    asked: dict[str, Any], num_generated: int, expected: str | None
) -> None:
    made = options(GenerationConfig(**asked), num_generated=num_generated)
    assert made["output_logits"] == expected
    assert "logprobs" not in made


@pytest.mark.parametrize(
    ("asked", "end_token_ids", "message"),
    [
        (
            {"do_sample": True, "temperature": 2.1},
            [],
            r"at most 2 .*it is 2\.1: .*engine='transformers'",
        ),
        ({"do_sample": True, "top_k": 2000}, [], "at most 1024 .*it is 2000"),
        ({"bad_token_ids": tuple(range(40))}, [], "at most 32 tokens with TurboMind; there are 40"),
        ({"frequency_penalty": 1}, [], "not support frequency_penalty; it is 1: .*'transformers'"),
        ({"presence_penalty": -1}, [], "not support presence_penalty; it is -1"),
        ({"logit_bias": {3: 1}}, [], "not support logit_bias; it is "),
        ({"min_new_tokens": 1}, range(33), "at most 32 end tokens with TurboMind; there are 33"),
    ],
)
def test_options_that_would_be_changed_silently_are_refused(
    asked: dict[str, Any], end_token_ids: Any, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        check_options(GenerationConfig(**asked), end_token_ids)


@pytest.mark.parametrize(
    ("asked", "end_token_ids"),
    [
        ({"temperature": 50.0, "top_k": 5000}, []),  # greedy ignores them
        ({"do_sample": True, "temperature": 2.0, "top_k": 1024}, []),
        ({"bad_token_ids": (*range(32), 5)}, []),
        ({}, range(400)),
        ({"min_new_tokens": 1}, range(32)),
    ],
)
def test_supported_options_are_accepted(asked: dict[str, Any], end_token_ids: Any) -> None:
    check_options(GenerationConfig(**asked), end_token_ids)

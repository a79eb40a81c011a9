from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vlcore.engines.external.continuation import Continuation
from vlcore.engines.external.prompt import HostPrompt
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.grammar import Grammar
from vlcore.engines.vllm.translation import check_options, to_structured, to_vllm, to_vllm_prompt
from vlcore.errors import OptionError


def options(config: GenerationConfig | None = None, **settings: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"end_token_ids": {2}, "max_new_tokens": 9} | settings
    return to_vllm(Continuation(config=config or GenerationConfig(), **given))


def test_greedy_decoding_has_no_sampling_options() -> None:
    assert options() == {
        "max_tokens": 9,
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "logit_bias": None,
        "stop_token_ids": [2],
        "ignore_eos": True,
        "min_tokens": 0,
        "logprobs": None,
        "detokenize": False,
    }


def test_sampling_options_are_passed_on() -> None:
    config = GenerationConfig(
        do_sample=True, temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, random_seed=3, logprobs=4
    )
    made = options(config, choice=2, num_generated=1)
    expected = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "seed": 6}
    assert expected.items() <= made.items()
    assert made["logprobs"] == 4


def test_seeds_are_in_the_range_of_vllm() -> None:
    config = GenerationConfig(do_sample=True, random_seed=2**64 - 1)
    assert options(config)["seed"] == 2**63 - 1
    assert options(config, choice=1)["seed"] == 0
    random = {options(GenerationConfig(do_sample=True))["seed"] for _ in range(3)}
    assert len(random) == 3
    assert all(0 <= seed < 2**63 for seed in random)


@pytest.mark.parametrize("temperature", [1e-4, 0.009])
def test_a_temperature_that_vllm_would_raise_is_greedy(temperature: float) -> None:
    made = options(GenerationConfig(do_sample=True, temperature=temperature))
    assert made["temperature"] == 0
    assert "seed" not in made


def test_tokens_are_banned_by_their_bias() -> None:
    config = GenerationConfig(bad_token_ids=(5, 6), logit_bias={6: 10.0, 7: -1})
    assert options(config, banned_token_ids={8})["logit_bias"] == {
        5: -math.inf,
        6: -math.inf,
        7: -1.0,
        8: -math.inf,
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 7),
        ({"num_generated": 5}, 2),
        ({"num_generated": 8}, 0),
        ({"num_generated": 5, "max_new_tokens": 1}, 1),
        ({"end_token_ids": ()}, 0),
    ],
)
def test_the_minimum_counts_the_tokens_of_the_answer_so_far(
    settings: dict[str, Any], expected: int
) -> None:
    assert options(GenerationConfig(min_new_tokens=7), **settings)["min_tokens"] == expected


def check(config: GenerationConfig, num_ends: int = 1, *, second: bool = False) -> None:
    check_options(config, range(num_ends), has_second_runner=second)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"output_logits": "all"}, "does not return logits; output_logits is 'all'"),
        (
            {"do_sample": True, "temperature": 2.5},
            "temperature must be at most 2 with vLLM",
        ),
        (
            {"bad_words": ["x"], "grammar": Grammar.choice(["a"])},
            "bad_words cannot be combined with a grammar",
        ),
        ({"bad_words": ["x"], "presence_penalty": 1}, "bad_words cannot be combined with freq"),
    ],
)
def test_options_that_vllm_lacks_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        check(GenerationConfig(**config))


def test_the_second_runner_has_limits_of_its_own() -> None:
    many = GenerationConfig(
        bad_token_ids=tuple(range(1000)), logit_bias=dict.fromkeys(range(990, 1030), 1)
    )
    check(many)
    with pytest.raises(OptionError, match="at most 1024 tokens together with vLLM; they have 1030"):
        check(many, second=True)
    minimum = GenerationConfig(min_new_tokens=1)
    check(minimum, 129)
    check(minimum, 128, second=True)
    with pytest.raises(OptionError, match="at most 128 end tokens with vLLM; there are 129"):
        check(minimum, 129, second=True)


def test_grammars_keep_the_settings_of_the_embedded_engine() -> None:
    assert to_structured(Grammar.regex(r"\d")) == {"grammar": "start: /[0-9]/"}
    assert to_structured(Grammar.choice(["a"])) == {"grammar": 'start: "a"'}
    made = to_structured(Grammar.json_schema({"type": "integer"}))["json"]
    assert made["type"] == "integer"
    assert "whitespace_pattern" in made["x-guidance"]


def test_a_text_prompt_has_no_embeddings() -> None:
    prompt = to_vllm_prompt(HostPrompt((5, 6)), [7])
    assert (prompt.token_ids, prompt.embeddings, prompt.is_token) == ([5, 6, 7], None, None)


def test_positions_of_tokens_differ_from_every_image_embedding() -> None:
    rows = torch.arange(6, dtype=torch.bfloat16).reshape(3, 2)
    prompt = to_vllm_prompt(
        HostPrompt((5, 5, 6, 5, 8), (rows[:2], rows[2:]), ((0, 2), (3, 4))), [9]
    )
    assert prompt.token_ids == [5, 5, 6, 5, 8, 9]
    assert prompt.is_token == [False, False, True, False, True, True]
    assert prompt.embeddings is not None
    assert prompt.embeddings.dtype is torch.bfloat16
    assert torch.equal(prompt.embeddings[[0, 1, 3]], rows)
    assert prompt.embeddings[[2, 4, 5]].isnan().all()

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vlcore.engines.generation import GenerationConfig, as_generation_config
from vlcore.errors import OptionError


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", "8"),
        ("max_new_tokens", None),
        ("max_new_tokens", True),
        ("min_new_tokens", -1),
        ("min_new_tokens", 0.5),
        ("min_new_tokens", 513),
        ("do_sample", 1),
        ("do_sample", "yes"),
        ("do_sample", None),
        ("max_new_tokens", float("inf")),
        ("max_new_tokens", float("nan")),
        ("temperature", -0.1),
        ("temperature", 101.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "0.8"),
        ("temperature", True),
        ("top_k", -2),
        ("top_k", 1.5),
        ("top_k", None),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("top_p", None),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", "0"),
        ("repetition_penalty", 0),
        ("repetition_penalty", 101),
        ("repetition_penalty", None),
        ("frequency_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", None),
        ("presence_penalty", float("nan")),
        ("presence_penalty", "1"),
        ("presence_penalty", True),
        ("logit_bias", [3]),
        ("random_seed", 1.5),
        ("random_seed", "1"),
        ("random_seed", True),
        ("random_seed", -1),
        ("random_seed", 2**64),
        ("stop_words", ""),
        ("stop_words", ["a", ""]),
        ("stop_words", [1]),
        ("stop_words", 1),
        ("stop_words", 1.5),
        ("stop_token_ids", ["a"]),
        ("stop_token_ids", "a"),
        ("stop_token_ids", [True]),
        ("stop_token_ids", [1.5]),
        ("stop_token_ids", 1.5),
        ("stop_token_ids", [-1]),
        ("bad_words", ""),
        ("bad_words", ["a", ""]),
        ("bad_words", [1]),
        ("bad_token_ids", ["a"]),
        ("bad_token_ids", [-1]),
        ("n", 0),
        ("n", 1.5),
        ("n", None),
        ("n", True),
        ("logprobs", -1),
        ("logprobs", True),
        ("logprobs", "2"),
        ("output_logits", True),
        ("output_logits", "prompt"),
        ("ignore_eos", 0),
        ("ignore_eos", None),
        ("skip_special_tokens", "no"),
    ],
)
def test_an_option_out_of_range_or_of_a_wrong_type_is_named(option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{option} must be .+; it is "):
        GenerationConfig(**{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_new_tokens", 1),
        ("min_new_tokens", 512),
        ("temperature", 0),
        ("temperature", 100),
        ("temperature", 1),
        ("top_k", 0),
        ("top_p", 1),
        ("top_p", 1e-6),
        ("top_p", 0),
        ("min_p", 0),
        ("min_p", 1.0),
        ("repetition_penalty", 0.5),
        ("frequency_penalty", -2),
        ("presence_penalty", 2.0),
        ("logit_bias", {3: -100, 0: 100.0}),
        ("random_seed", 0),
        ("random_seed", 2**63),
        ("logprobs", 0),
        ("output_logits", "all"),
    ],
)
def test_the_limits_of_every_range_are_allowed(option: str, value: Any) -> None:
    assert getattr(GenerationConfig(**{option: value}), option) == value


@pytest.mark.parametrize(
    "option",
    ["n", "max_new_tokens", "min_new_tokens", "top_k", "random_seed", "logprobs"],
)
def test_whole_numbers_may_be_floats(option: str) -> None:
    options: dict[str, Any] = {option: 8.0}
    value = getattr(GenerationConfig(**options), option)
    assert (value, type(value)) == (8, int)


@pytest.mark.parametrize("option", ["stop_token_ids", "bad_token_ids"])
def test_token_ids_may_be_floats(option: str) -> None:
    options: dict[str, Any] = {option: [8.0]}
    (value,) = getattr(GenerationConfig(**options), option)
    assert (value, type(value)) == (8, int)


def test_top_k_of_minus_one_is_no_limit() -> None:
    assert GenerationConfig(top_k=-1) == GenerationConfig(top_k=0)
    assert GenerationConfig(top_k=-1.0).top_k == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "is_greedy"),
    [
        ({}, True),
        ({"temperature": 0.7}, True),
        ({"do_sample": True}, False),
        ({"do_sample": True, "temperature": 0}, True),
        ({"do_sample": True, "temperature": 0.0, "top_k": 5}, True),
        ({"do_sample": True, "temperature": 1e-46}, True),
        ({"do_sample": True, "temperature": 0.01}, False),
        ({"do_sample": True, "top_p": 0}, True),
        ({"do_sample": True, "top_p": 0.01}, False),
        ({"do_sample": True, "top_k": 1}, True),
        ({"do_sample": True, "top_k": -1}, False),
        ({"do_sample": True, "min_p": 1}, False),
    ],
)
def test_greedy_options_generate_one_answer(options: dict[str, Any], is_greedy: bool) -> None:
    config = GenerationConfig(n=3, **options)
    assert config.is_greedy is is_greedy
    assert config.num_distinct_answers == (1 if is_greedy else 3)


def test_unknown_options_are_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"\(s\) beams, top_q; known: n, max_new_tokens.*top_p"):
        GenerationConfig(top_q=1, beams=4)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("given", "kept"), [(None, ()), ("a", ("a",)), (["a", "b"], ("a", "b")), ((), ())]
)
def test_stop_words_are_kept_as_a_tuple(given: Any, kept: tuple[str, ...]) -> None:
    assert GenerationConfig(stop_words=given).stop_words == kept


@pytest.mark.parametrize(("given", "kept"), [(None, ()), (2, (2,)), ([2, 3], (2, 3))])
def test_stop_token_ids_are_kept_as_a_tuple(given: Any, kept: tuple[int, ...]) -> None:
    assert GenerationConfig(stop_token_ids=given).stop_token_ids == kept


def test_a_copy_is_checked_too() -> None:
    config = GenerationConfig(top_k=3)
    assert replace(config, top_p=0.5) == GenerationConfig(top_k=3, top_p=0.5)
    with pytest.raises(OptionError, match="top_p"):
        replace(config, top_p=2.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"min_new_tokens": 9, "max_new_tokens": 8},
            "min_new_tokens .* at most .*=8; it is 9",
        ),
        ({"stop_token_ids": [3, 4], "bad_token_ids": [4]}, r"stop_token_ids .*: \[4\] are also in"),
        (
            {"stop_words": ["Stop"], "bad_words": ["top"]},
            "'Stop' contains 'top'",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(OptionError, match=expected):
        GenerationConfig(**options)


def test_a_stop_string_inside_a_banned_string_is_no_contradiction() -> None:
    GenerationConfig(stop_words=("top",), bad_words=("Stop",))


def test_options_are_a_config_a_mapping_or_none() -> None:
    assert as_generation_config(None) == GenerationConfig()
    assert as_generation_config({"top_k": 3}) == GenerationConfig(top_k=3)
    assert as_generation_config(GenerationConfig(top_k=3)) == GenerationConfig(top_k=3)
    with pytest.raises(OptionError, match="are strings, not 1"):
        as_generation_config({1: 2})  # type: ignore[dict-item]
    with pytest.raises(OptionError, match=r"must be a GenerationConfig or a mapping .*, not list"):
        as_generation_config([("top_k", 3)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bias", [{-1: 1}, {"3": 1}, {1.5: 1}, {True: 1}, {3: 101}, {3: float("nan")}, {3: None}]
)
def test_a_bias_maps_token_ids_to_numbers_in_range(bias: dict[Any, Any]) -> None:
    with pytest.raises(OptionError, match="logit_bias must map token ids to numbers"):
        GenerationConfig(logit_bias=bias)


def test_a_config_with_a_bias_is_hashable_and_keeps_its_own_copy() -> None:
    bias = {3.0: 1}
    config = GenerationConfig(logit_bias=bias)  # type: ignore[arg-type]
    bias.clear()
    assert config.logit_bias == {3: 1}
    assert hash(config) == hash(replace(config, n=1))
    assert GenerationConfig(logit_bias=None) == GenerationConfig()  # type: ignore[arg-type]

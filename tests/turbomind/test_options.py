from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
from engine_requests import request, token_ids

from vlcore.engines.turbomind.engine import TurbomindEngine
from vlcore.errors import (
    OptionError,
)

if importlib.util.find_spec("lmdeploy") is None:
    pytest.skip("lmdeploy is not installed: make test-turbomind", allow_module_level=True)
if TYPE_CHECKING:
    from turbomind_stand_in import Asked, Communicator
from turbomind_requests import ask

EOS = 2


def arrived(engine: TurbomindEngine, communicator: Communicator, **options: Any) -> Asked:
    """Ask with options, and give the one request that arrived."""
    ask(engine, request(5, **options))
    (asked,) = communicator.asked
    return asked


def test_greedy_answers_sample_from_one_token(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    options = arrived(engine, communicator, max_new_tokens=3).options
    assert options["top_k"] == 1
    assert options["temperature"] == options["top_p"] == options["repetition_penalty"] == 1
    assert options["max_new_tokens"] == 3
    assert options["min_new_tokens"] == 0


def test_every_sampling_option_is_sent(engine: TurbomindEngine, communicator: Communicator) -> None:
    options = arrived(
        engine,
        communicator,
        do_sample=True,
        temperature=0.5,
        top_k=7,
        top_p=0.75,
        min_p=0.25,
        repetition_penalty=1.5,
        random_seed=2**64 - 1,
        bad_token_ids=(5, 3),
    ).options
    assert options["temperature"] == 0.5
    assert options["top_k"] == 7
    assert options["top_p"] == 0.75
    assert options["min_p"] == 0.25
    assert options["repetition_penalty"] == 1.5
    assert options["random_seed"] == 2**64 - 1
    assert options["bad_ids"] == [[3, 5], [1, 2]]


def test_end_tokens_arrive_as_stop_tokens(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    options = arrived(
        engine,
        communicator,
        ignore_eos=False,
        min_new_tokens=2,
        stop_token_ids=(9,),
        stop_words=("<unk>",),
    ).options
    assert options["stop_ids"] == [[0, EOS, 9], [1, 2, 3]]
    assert options["eos_ids"] == [0, EOS, 9]
    assert options["min_new_tokens"] == 2


def test_with_ignore_eos_only_stop_token_ids_end_an_answer(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    options = arrived(engine, communicator, ignore_eos=True, stop_token_ids=(9,)).options
    assert options["stop_ids"] == [[9], [1]]


def test_a_request_without_end_tokens_sends_some_and_ignores_them(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    options = arrived(engine, communicator, ignore_eos=True, min_new_tokens=4).options
    assert options["stop_ids"] == [[], []]
    assert options["eos_ids"] == [EOS]
    assert options["min_new_tokens"] == 0


def test_end_tokens_outside_the_vocabulary_are_kept_away(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    asked = arrived(engine, communicator, stop_token_ids=(9, 700), min_new_tokens=1)
    assert asked.options["eos_ids"] == [9]


def test_an_answer_ends_where_the_context_does(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    outputs = ask(engine, request(508, max_new_tokens=100))
    assert len(token_ids(outputs)) == 4
    assert outputs[-1].finish_reason == "length"
    assert communicator.asked[0].options["max_new_tokens"] == 4


def test_each_of_n_answers_is_a_request_with_its_own_seed(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    asked: dict[str, Any] = {"do_sample": True, "temperature": 1.9, "max_new_tokens": 4}
    outputs = ask(engine, request(5, n=3, random_seed=2**64 - 2, **asked))
    seeds = [one.options["random_seed"] for one in communicator.asked]
    assert sorted(seeds) == [0, 2**64 - 2, 2**64 - 1]
    assert len({one.session_id for one in communicator.asked}) == 3
    alone = ask(engine, request(5, random_seed=2**64 - 1, **asked))
    second = [output for output in outputs if output.choice == 1]
    assert token_ids(second) == token_ids(alone)


def test_greedy_answers_are_generated_once_and_repeated(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    alone = ask(engine, request(5, max_new_tokens=4))
    num_before = len(communicator.asked)
    outputs = ask(engine, request(5, n=3, do_sample=True, temperature=0, max_new_tokens=4))
    assert len(communicator.asked) == num_before + 1
    for choice in range(3):
        assert token_ids([o for o in outputs if o.choice == choice]) == token_ids(alone)


def test_answers_without_a_seed_have_different_seeds(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    for _ in range(2):
        ask(engine, request(5, do_sample=True))
    seeds = {one.options["random_seed"] for one in communicator.asked}
    assert len(seeds) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_sample": True, "temperature": 2.5}, "at most 2 with TurboMind; it is 2.5"),
        ({"do_sample": True, "top_k": 1025}, "at most 1024 with TurboMind"),
        ({"bad_token_ids": tuple(range(33))}, "at most 32 tokens with TurboMind; there are 33"),
        (
            {"min_new_tokens": 1, "stop_token_ids": tuple(range(33))},
            "at most 32 end tokens with TurboMind; there are 33",
        ),
        ({"logprobs": 701}, "at most 700, the size of the vocabulary"),
    ],
)
def test_options_that_turbomind_would_change_are_refused(
    engine: TurbomindEngine, communicator: Communicator, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        ask(engine, request(5, **options))
    assert communicator.asked == []

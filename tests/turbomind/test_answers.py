from __future__ import annotations

import importlib.util
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
import torch
from engine_requests import request, run, text, token_ids
from waits import TIMEOUT_S

from vlcore.engines.detokenizer import Detokenizer
from vlcore.engines.turbomind.engine import TurbomindEngine
from vlcore.errors import (
    EngineError,
    OptionError,
)

if importlib.util.find_spec("lmdeploy") is None:
    pytest.skip("lmdeploy is not installed: make test-turbomind", allow_module_level=True)
if TYPE_CHECKING:
    from turbomind_stand_in import Communicator
from turbomind_requests import ask


def test_more_end_tokens_than_turbomind_supports_also_end_an_answer(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    first, *_ = token_ids(ask(engine, request(5)))
    others = [i for i in range(100, 200) if i != first][:40]
    outputs = ask(engine, request(5, stop_token_ids=(*others, first)))
    assert [(output.token_ids, output.finish_reason) for output in outputs] == [((), "stop")]
    assert len(communicator.asked[-1].options["stop_ids"][0]) == 32


def test_a_stop_string_over_several_tokens_ends_the_answer_and_cancels_the_request(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    whole = text(ask(engine, request(6, max_new_tokens=30)))
    stop = whole[4:9]
    outputs = ask(engine, request(6, max_new_tokens=400, stop_words=(stop,)))
    assert text(outputs) == whole[: whole.index(stop)]
    assert outputs[-1].finish_reason == "stop"
    assert len(token_ids(outputs)) < 30


def test_banned_strings_never_appear(engine: TurbomindEngine, communicator: Communicator) -> None:
    plain = ask(engine, request(6, max_new_tokens=20))
    bad = text(plain)[3:6]
    outputs = ask(engine, request(6, max_new_tokens=20, bad_words=(bad,)))
    assert bad not in text(outputs)
    assert len(token_ids(outputs)) == 20
    pairs = zip(token_ids(plain), token_ids(outputs), strict=True)
    kept = next(index for index, (before, after) in enumerate(pairs) if before != after)
    asked_again = communicator.asked[2]
    assert asked_again.token_ids == [*communicator.asked[1].token_ids, *token_ids(plain)[:kept]]
    assert asked_again.options["max_new_tokens"] == 1
    assert asked_again.options["bad_ids"][0] == [token_ids(plain)[kept]]


def test_banned_strings_that_leave_no_token_are_an_error(
    engine: TurbomindEngine, communicator: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detokenizer, "allows", lambda *_: False)
    with pytest.raises(EngineError, match="bad_words exclude all of the 33 most likely"):
        ask(engine, request(6, bad_words=("any",)))


def test_logprobs_are_of_the_models_own_distribution(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    outputs = ask(engine, request(6, logprobs=3, max_new_tokens=3, repetition_penalty=2.0))
    (asked,) = communicator.asked
    assert asked.options["output_logits"] == 2
    assert asked.options["output_logprobs"] == 0
    generated = [*asked.token_ids, *token_ids(outputs)]
    with torch.inference_mode():
        logits = communicator.model(torch.tensor([generated])).logits[0].float()
    for index, output in enumerate(outputs, start=len(asked.token_ids) - 1):
        (logprobs,) = output.logprobs
        expected = logits[index].log_softmax(-1)
        assert next(iter(logprobs)) == output.token_ids[0]
        for token_id, value in logprobs.items():
            assert value == pytest.approx(float(expected[token_id]), abs=1e-4)
        assert set(expected.topk(3).indices.tolist()) <= set(logprobs)


def test_logits_of_prompt_and_answer_are_returned(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    outputs = ask(engine, request(6, output_logits="all", max_new_tokens=3))
    (asked,) = communicator.asked
    with torch.inference_mode():
        generated = torch.tensor([[*asked.token_ids, *token_ids(outputs)]])
        expected = communicator.model(generated).logits[0].float()
    first, *others = outputs
    assert first.prompt_logits is not None
    torch.testing.assert_close(first.prompt_logits, expected[:6], atol=1e-4, rtol=1e-4)
    assert all(output.prompt_logits is None for output in others)
    for index, output in enumerate(outputs, start=5):
        assert output.logits is not None
        torch.testing.assert_close(output.logits[0], expected[index], atol=1e-4, rtol=1e-4)


def test_logits_of_the_prompt_are_refused_with_a_prefix_cache(
    engine: TurbomindEngine, communicator: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._settings, "enable_prefix_caching", True)
    with pytest.raises(OptionError, match="with enable_prefix_caching"):
        ask(engine, request(6, output_logits="all"))


def test_text_is_streamed_token_by_token(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    seen = threading.Event()

    def wait(num_tokens: int) -> None:
        if num_tokens == 3:
            assert seen.wait(TIMEOUT_S)

    communicator.step = wait

    async def body() -> None:
        async with aclosing(engine.generate(request(6, max_new_tokens=5))) as generated:
            first = [await anext(generated) for _ in range(3)]
            seen.set()
            rest = [chunk async for chunk in generated]
        assert len(token_ids(first)) == 3
        assert len(token_ids(rest)) == 2

    run(body)

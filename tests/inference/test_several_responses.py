from __future__ import annotations

import pytest
from pipeline_requests import RED, SHORT

from vlcore.engines.generation import GenerationConfig
from vlcore.inference.pipeline import Pipeline

SAMPLED = GenerationConfig(max_new_tokens=6, n=3, do_sample=True, random_seed=1, temperature=3.0)


def test_n_responses_are_returned_with_the_first(pipe: Pipeline) -> None:
    response = pipe(("hello", RED), SAMPLED)
    assert [answer.choice for answer in response.choices] == [0, 1, 2]
    assert len({answer.token_ids for answer in response.choices}) == 3
    assert response.token_ids == response.choices[0].token_ids
    first, second = pipe([("hello", RED), "hello"], SAMPLED)
    assert first == response
    assert (second.index, len(second.choices)) == (1, 3)


def test_chunks_of_n_responses_state_their_choice(pipe: Pipeline) -> None:
    expected = pipe(["hello", ("hello", RED)], SAMPLED)
    for prompts in (["hello", ("hello", RED)], "hello"):
        chunks = list(pipe.stream_infer(prompts, SAMPLED))
        for index in range(len(prompts) if isinstance(prompts, list) else 1):
            for answer in expected[index].choices:
                own = [p for p in chunks if (p.index, p.choice) == (index, answer.choice)]
                assert "".join(chunk.text for chunk in own) == answer.text
                assert [bool(chunk.finish_reason) for chunk in own].count(True) == 1
                assert own[-1].generate_token_len == answer.generate_token_len


def test_a_stream_of_n_responses_ends_in_spite_of_a_failed_prompt(pipe: Pipeline) -> None:
    chunks = list(pipe.stream_infer(["hello", ("hello", "missing.png")], SAMPLED))
    assert [p.index for p in chunks if p.finish_reason == "error"] == [1]
    assert sum(p.finish_reason == "length" for p in chunks) == 3


def test_logprobs_and_logits_are_part_of_the_response(pipe: Pipeline) -> None:
    options = {"max_new_tokens": 6, "logprobs": 2, "output_logits": "all"}
    response = pipe(("hello", RED), options)
    assert response.logits is not None
    assert response.prompt_logits is not None
    assert response.logits.shape == (6, 700)
    assert response.prompt_logits.shape == (response.input_token_len, 700)
    expected = response.logits.log_softmax(-1)
    for row, token_id, logprobs in zip(
        expected, response.token_ids, response.logprobs, strict=True
    ):
        assert logprobs[token_id] == pytest.approx(float(row[token_id]), abs=1e-5)
        assert len(logprobs) == 2  # greedy: the token is the most likely one
    assert int(response.prompt_logits[-1].argmax()) == response.token_ids[0]
    assert pipe(("hello", RED), SHORT).logits is None

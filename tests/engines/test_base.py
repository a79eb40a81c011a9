from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
import torch

from vlcore.engines.base import Engine, EngineOutput, EngineRequest, EngineStats
from vlcore.engines.generation import GenerationConfig
from vlcore.errors import ContextLengthError, EngineError, OptionError, PluginContractError
from vlcore.language.prompt_inputs import PromptInputs
from vlcore.prompts.tokenization import Span, TokenizedPrompt


class FakeEngine(Engine):
    name = "fake"
    offers = frozenset({"mrope"})
    hidden_size = 4
    vocab_size = 10
    context_length = 8

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput]:
        yield EngineOutput("", (), "stop")

    async def close(self) -> None:
        pass

    def stats(self) -> EngineStats:
        return EngineStats(0, 0)


def check(token_ids: tuple[int, ...], spans: Any = (), rows: Any = (), **options: Any) -> None:
    config = GenerationConfig(**options)
    FakeEngine().check(EngineRequest(TokenizedPrompt(token_ids, tuple(spans)), tuple(rows), config))


def test_a_request_that_fits_passes() -> None:
    check((0, 9, 1, 2, 3, 4, 5))
    check(
        (0,) * 6,
        [Span(0, 2, 1, 0), Span(3, 4, 0, 0), Span(4, 6, 1, 2)],
        [torch.zeros(1, 4), torch.zeros(4, 4)],
    )


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(EngineError, match="prompt is empty"):
        check(())


@pytest.mark.parametrize("num_tokens", [8, 9])
def test_a_prompt_that_fills_the_context_is_refused(num_tokens: int) -> None:
    with pytest.raises(ContextLengthError, match=f"has {num_tokens} tokens.*length is 8"):
        check((1,) * num_tokens)


def test_the_reason_for_a_short_context_is_part_of_the_error() -> None:
    engine = FakeEngine()
    engine.context_limit_reason = "the moon is full"
    with pytest.raises(ContextLengthError, match=r"8 .*, because the moon is full: shorten"):
        engine.check_length(8)


@pytest.mark.parametrize("token_id", [-1, 10])
def test_a_token_outside_the_vocabulary_is_refused(token_id: int) -> None:
    with pytest.raises(EngineError, match=r"must be in 0..9; .*does the tokenizer belong"):
        check((3, token_id))


@pytest.mark.parametrize("shape", [(2, 5), (2,), (1, 2, 4)])
def test_embeddings_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        PluginContractError, match=r"embeddings of image 0 must have the shape \[k, 4\]"
    ):
        check((0, 0), [Span(0, 2, 0, 0)], [torch.zeros(shape)])


@pytest.mark.parametrize("num_rows", [1, 3])
def test_embeddings_that_do_not_fill_their_spans_are_refused(num_rows: int) -> None:
    with pytest.raises(PluginContractError, match=f"image 0 has {num_rows} embeddings"):
        check((0, 0, 0), [Span(0, 2, 0, 0)], [torch.zeros(num_rows, 4)])


@pytest.mark.parametrize(
    "span",
    [Span(1, 1, 1, 1), Span(1, 1, -1, 1), Span(2, 3, 0, 0), Span(-1, 0, 0, 0), Span(0, 1, 0, 1)],
)
def test_spans_outside_of_the_prompt_are_refused(span: Span) -> None:
    with pytest.raises(PluginContractError, match=r"Span.* is outside of"):
        check((0, 0), [span] if span.image == 0 else [Span(1, 2, 0, 0), span], [torch.zeros(1, 4)])


def test_spans_without_embeddings_are_refused() -> None:
    with pytest.raises(PluginContractError, match=r"Span.* is outside of"):
        check((0, 0), [Span(0, 2, 0, 0)])


def test_embeddings_without_spans_are_refused() -> None:
    with pytest.raises(PluginContractError, match="image 0 has 1 embeddings"):
        check((0, 0), [], [torch.zeros(1, 4)])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"logprobs": 11}, "logprobs must be at most 10, .*it is 11"),
        ({"bad_token_ids": [3, 10]}, r"bad_token_ids must be in 0..9, .* are 2, up to 10"),
        ({"bad_token_ids": range(10)}, r"bad_token_ids must be in 0..9, .* are 10"),
    ],
)
def test_options_that_do_not_fit_the_vocabulary_are_refused(
    options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(OptionError, match=expected):
        check((1,), **options)
    check((1,), logprobs=10, bad_token_ids=range(9))


def test_inputs_that_do_not_belong_to_the_prompt_are_refused() -> None:
    prompt = TokenizedPrompt((1, 2, 3))
    inputs = PromptInputs(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(PluginContractError, match=r"3 columns, .* they have 2"):
        FakeEngine().check(EngineRequest(prompt, inputs=inputs))
    groups = PromptInputs(attention_groups=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(EngineError, match="need attention_groups, which the fake engine does not"):
        FakeEngine().check(EngineRequest(prompt, inputs=groups))
    fitting = PromptInputs(torch.zeros(3, 3, dtype=torch.int64), rope_delta=-2)
    FakeEngine().check(EngineRequest(prompt, inputs=fitting))

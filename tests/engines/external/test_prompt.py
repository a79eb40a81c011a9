from __future__ import annotations

import pytest
import torch

from vlcore.engines.base import EngineRequest
from vlcore.engines.external.prompt import to_host_prompt
from vlcore.engines.generation import GenerationConfig
from vlcore.errors import OptionError, PluginContractError
from vlcore.prompts.tokenization import Span, TokenizedPrompt

ROWS = torch.arange(24.0).reshape(6, 4)


def test_a_text_prompt_has_no_embeddings() -> None:
    prompt = to_host_prompt(EngineRequest(TokenizedPrompt((1, 2, 3))), torch.float16)
    assert (prompt.token_ids, prompt.embeddings, prompt.ranges) == ((1, 2, 3), (), ())


def test_embeddings_are_split_by_their_spans_in_order() -> None:
    spans = (Span(5, 7, 0, 0), Span(1, 3, 1, 4), Span(3, 3, 0, 2), Span(3, 4, 1, 0))
    request = EngineRequest(TokenizedPrompt((7, 0, 0, 0, 8, 0, 0), spans), (ROWS, -ROWS))
    prompt = to_host_prompt(request, torch.bfloat16)
    assert prompt.ranges == ((1, 3), (3, 4), (5, 7))
    assert [rows.tolist() for rows in prompt.embeddings] == [
        (-ROWS[4:6]).tolist(),
        (-ROWS[:1]).tolist(),
        ROWS[:2].tolist(),
    ]
    assert {rows.dtype for rows in prompt.embeddings} == {torch.bfloat16}
    assert {rows.device.type for rows in prompt.embeddings} == {"cpu"}


def test_placeholder_ids_are_tokens_of_the_prompt() -> None:
    request = EngineRequest(TokenizedPrompt((0, 0, 8, 9), (Span(0, 2, 0, 0),)), (ROWS[:2],))
    assert to_host_prompt(request, torch.float16).token_ids == (8, 8, 8, 9)


def test_a_repetition_penalty_needs_a_text_token() -> None:
    asked = TokenizedPrompt((0, 0), (Span(0, 2, 0, 0),))
    assert to_host_prompt(EngineRequest(asked, (ROWS[:2],)), torch.float16).token_ids == (0, 0)
    config = GenerationConfig(repetition_penalty=1.1)
    with pytest.raises(OptionError, match="at least one text token"):
        to_host_prompt(EngineRequest(asked, (ROWS[:2],), config), torch.float16)


def test_overlapping_spans_are_refused() -> None:
    request = EngineRequest(
        TokenizedPrompt((0,) * 4, (Span(0, 3, 0, 0), Span(2, 4, 0, 3))), (ROWS,)
    )
    with pytest.raises(PluginContractError, match=r"Span\(start=0.*overlap"):
        to_host_prompt(request, torch.float16)


@pytest.mark.parametrize("value", [7e4, torch.nan])
def test_embeddings_that_overflow_the_dtype_are_refused(value: float) -> None:
    request = EngineRequest(
        TokenizedPrompt((1, 0), (Span(1, 2, 0, 0),)), (torch.tensor([[1.0, value, 0.0, 0.0]]),)
    )
    with pytest.raises(PluginContractError, match=r"image 0 .* too large for float16"):
        to_host_prompt(request, torch.float16)

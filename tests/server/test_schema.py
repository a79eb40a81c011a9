from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from server_client import GOOD, post, send

from vlcore.server.schema import ChatCompletion, ChatRequest, ErrorResponse, ModelList

TURN = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    "option",
    [
        {"temperature": float("nan")}, {"temperature": float("inf")}, {"temperature": -0.1},
        {"temperature": 2.1}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": -1}, {"top_k": -1},
        {"repetition_penalty": 1e-300},
        {"top_k": True}, {"n": "1"}, {"logprobs": 0},
        {"repetition_penalty": 101}, {"seed": 2**63}, {"n": 0},
        {"top_logprobs": 21}, {"stop": ["a"] * 17}, {"messages": []},
    ],
)  # fmt: skip
def test_a_value_out_of_its_range_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"model": "tiny", "messages": [TURN]} | option)


def test_answers_have_the_documented_shape(url: str) -> None:
    asked = GOOD | {"logprobs": True, "top_logprobs": 2}
    answer = send(url, post(asked)).json()
    read = ChatCompletion.model_validate(answer, extra="forbid")
    assert read.model_dump(exclude_unset=True) == answer
    ErrorResponse.model_validate(send(url, post(b"")).json(), extra="forbid")


def test_the_list_of_models_has_the_documented_shape() -> None:
    listed = {"data": [{"id": "tiny", "created": 1}]}
    assert ModelList.model_validate(listed).data[0].object == "model"

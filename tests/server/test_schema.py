from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from server_client import GOOD, post, send

from vlcore.server.schema.completion import ChatCompletion
from vlcore.server.schema.errors import ErrorResponse
from vlcore.server.schema.models import ModelList
from vlcore.server.schema.request import ChatRequest

MESSAGE = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    "option",
    [
        {"temperature": float("nan")}, {"temperature": float("inf")}, {"temperature": -0.1},
        {"temperature": 2.1}, {"top_p": -0.1}, {"top_p": 1.1}, {"min_p": -1}, {"top_k": -2},
        {"repetition_penalty": 1e-300},
        {"top_k": True}, {"n": "1"}, {"logprobs": 0},
        {"repetition_penalty": 101}, {"seed": 2**63}, {"n": 0},
        {"top_logprobs": 21}, {"stop": ["a"] * 17}, {"messages": []},
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"model": "tiny", "messages": [MESSAGE]} | option)


def test_responses_have_the_documented_shape(url: str) -> None:
    request = GOOD | {"logprobs": True, "top_logprobs": 2}
    body = send(url, post(request)).json()
    completion = ChatCompletion.model_validate(body, extra="forbid")
    assert completion.model_dump(exclude_unset=True) == body
    ErrorResponse.model_validate(send(url, post(b"")).json(), extra="forbid")


def test_the_model_list_has_the_documented_shape() -> None:
    data = {"data": [{"id": "tiny", "created": 1}]}
    assert ModelList.model_validate(data).data[0].object == "model"

from __future__ import annotations

import pytest
import torch

from vlcore.errors import OptionError
from vlcore.inference.response import Response, error_response, join_responses


def chunk(text: str, choice: int, *token_ids: int, last: bool = False) -> Response:
    return Response(
        text,
        generate_token_len=len(token_ids),
        input_token_len=7,
        finish_reason="stop" if last else None,
        token_ids=token_ids,
        index=3,
        choice=choice,
        logprobs=tuple({token_id: -1.0} for token_id in token_ids),
        logits=torch.full((len(token_ids), 2), float(choice)) if token_ids else None,
    )


def test_chunks_of_one_response_are_joined() -> None:
    whole = join_responses([chunk("a", 0, 1, 2), chunk("", 0, 3), chunk("b", 0, last=True)])
    assert (whole.text, whole.token_ids, whole.finish_reason) == ("ab", (1, 2, 3), "stop")
    assert (whole.input_token_len, whole.index) == (7, 3)
    assert whole.logprobs == ({1: -1.0}, {2: -1.0}, {3: -1.0})
    assert whole.logits is not None
    assert whole.logits.shape == (3, 2)
    assert whole.others == ()
    assert whole.choices == (whole,)


def test_chunks_of_several_responses_are_joined_separately() -> None:
    mixed = [chunk("a", 1, 1), chunk("x", 0, 5, last=True), chunk("b", 1, 2, last=True)]
    whole = join_responses(mixed)
    assert (whole.text, whole.choice) == ("x", 0)
    assert [answer.text for answer in whole.choices] == ["x", "ab"]
    assert [answer.choice for answer in whole.choices] == [0, 1]
    assert all(answer.others == () for answer in whole.choices)
    second = whole.others[0]
    assert second.logits is not None
    assert torch.equal(second.logits, torch.ones(2, 2))


def test_a_response_without_tokens_has_no_logits() -> None:
    assert join_responses([chunk("", 0, last=True)]).logits is None


def test_a_failure_is_a_response_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    response = error_response(OptionError("too much"), 4)
    assert (response.finish_reason, response.index, response.text) == ("error", 4, "")
    assert "prompt 4 failed: too much" in caplog.text
    with pytest.raises(OptionError, match="too much"):
        response.raise_for_error()


def test_an_error_message_cannot_add_lines_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    error = OptionError("bad\nCRITICAL: all is lost\r\x1b[2J\u2028\u202e\ud800 猫é")
    assert error_response(error, 0).error is error
    (record,) = caplog.records
    expected = r"bad\nCRITICAL: all is lost\r\x1b[2J\u2028\u202e\ud800 猫é"
    assert record.getMessage() == f"prompt 0 failed: {expected}"

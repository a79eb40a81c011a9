from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_requests import BLUE, RED, SHORT, image_part, join, user

from vlcore.engines.generation import GenerationConfig
from vlcore.errors import (
    ImageError,
    OptionError,
    PromptError,
)
from vlcore.inference.pipeline import Pipeline
from vlcore.inference.response import Session
from vlcore.prompts.messages import Message, Text

SAMPLED = GenerationConfig(max_new_tokens=6, n=3, do_sample=True, random_seed=1, temperature=3.0)


# -- several responses, log-probabilities and logits


def test_a_session_continues_with_one_response(pipe: Pipeline) -> None:
    with pytest.raises(OptionError, match="n must be 1; it is 3"):
        pipe.chat("hello", None, SAMPLED)


# -- one prompt


def test_a_session_has_the_whole_of_a_continued_message(pipe: Pipeline) -> None:
    partial = {"role": "assistant", "content": "It is"}
    session = pipe.chat([user("hello"), partial], gen_config=SHORT)
    assert session.response is not None
    texts = [message.text for message in session.messages]
    assert texts == ["hello", "It is" + session.response.text]
    pipe.chat("and now?", session, SHORT)
    assert [message.role for message in session.messages] == ["user", "assistant"] * 2


# -- chat


def test_a_second_request_has_the_history_of_the_first(pipe: Pipeline) -> None:
    session = pipe.chat(("hello", RED), gen_config=SHORT)
    assert session.response == pipe(("hello", RED), SHORT)
    assert session.response is not None
    first = session.response.text
    assert pipe.chat("and now?", session, SHORT) is session
    explicit = pipe(
        [user(image_part(RED), "hello"), {"role": "assistant", "content": first}, user("and now?")],
        SHORT,
    )
    assert session.response.token_ids == explicit.token_ids
    assert session.response.input_token_len == explicit.input_token_len
    assert session.response.text != pipe("and now?", SHORT).text
    roles = [message.role for message in session.messages]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert session.messages[3].text == session.response.text


def test_a_later_request_may_have_an_image(pipe: Pipeline) -> None:
    session = pipe.chat(("hello", RED), gen_config=SHORT)
    assert session.response is not None
    history = [
        user(image_part(RED), "hello"),
        {"role": "assistant", "content": session.response.text},
    ]
    pipe.chat(("this?", BLUE), session, SHORT)
    assert session.response == pipe([*history, user(image_part(BLUE), "this?")], SHORT)


def test_an_error_does_not_change_the_session(pipe: Pipeline) -> None:
    session = pipe.chat("hello", gen_config=SHORT)
    conversation, response = session.conversation, session.response
    with pytest.raises(ImageError):
        pipe.chat(("look", "/absent.png"), session, SHORT)
    with pytest.raises(OptionError):
        pipe.chat("again", session, {"beams": 1})
    assert (session.conversation, session.response) == (conversation, response)
    assert pipe.chat("again", session, SHORT).response is not None


def test_a_stream_updates_the_session_at_its_end(pipe: Pipeline) -> None:
    expected = pipe.chat(("hello", RED), gen_config=SHORT)
    session = Session()
    chunks = []
    for chunk in pipe.stream_chat(("hello", RED), session, SHORT):
        assert (session.messages == ()) == (chunk.finish_reason is None)
        chunks.append(chunk)
    assert session == expected
    assert expected.response is not None
    assert join(chunks) == (expected.response.text, expected.response.token_ids)
    for _ in pipe.stream_chat("more", session, SHORT):
        break
    assert session == expected


# -- from another event loop


def test_a_session_is_updated_before_the_last_chunk_is_returned(pipe: Pipeline) -> None:
    session = Session()
    for chunk in pipe.stream_chat("hello", session, SHORT):
        if chunk.finish_reason is not None:
            break
    assert [message.role for message in session.messages] == ["user", "assistant"]
    assert session.response is not None
    assert session.response.text == pipe("hello", SHORT).text


# -- options


def test_a_session_has_message_values(pipe: Pipeline) -> None:
    session = pipe.chat("hello", gen_config=SHORT)
    assert session.messages[0] == Message("user", (Text("hello"),))


def test_a_session_keeps_its_images(pipe: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    RED.save(path)
    session = pipe.chat(("What is this?", path), gen_config=SHORT)
    path.unlink()
    session = pipe.chat("Are you sure?", session, SHORT)
    assert len(session.messages) == 4


def test_a_session_has_one_request_at_a_time(pipe: Pipeline) -> None:
    session = Session()
    first = pipe.stream_chat("hello", session, {"max_new_tokens": 400, "ignore_eos": True})
    next(first)
    with pytest.raises(PromptError, match="in use by another request"):
        pipe.chat("and?", session, SHORT)
    first.close()
    assert session.messages == ()
    assert len(pipe.chat("and?", session, SHORT).messages) == 2

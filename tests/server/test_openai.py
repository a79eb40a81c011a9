"""OpenAI's own client against the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from server_client import data_url


def ask(question: str, *names: str) -> list[Any]:
    pictures = [{"type": "image_url", "image_url": {"url": data_url(name)}} for name in names]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": question}]}]


COLOUR = ask("What colour is the circle?", "circle_and_square.png")
DESCRIPTION = "a large green triangle, a large yellow circle and a small red square"
"""Of banner.png."""


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def whole(client: openai.OpenAI, messages: list[Any], **options: Any) -> Any:
    return client.chat.completions.create(
        model="tiny", messages=messages, **{"temperature": 0} | options
    )


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = whole(client, COLOUR)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "red")
    assert choice.finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert answer.usage.prompt_tokens_details.image_tokens == 64
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens > 64


def test_a_stream(client: openai.OpenAI) -> None:
    chunks = list(
        whole(
            client,
            ask("Describe the picture.", "banner.png"),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *pieces, usage = chunks
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == DESCRIPTION
    assert len(pieces) > 5
    assert [p.choices[0].finish_reason for p in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert usage.choices == []
    assert usage.usage.prompt_tokens_details.image_tokens == 64
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    without = list(whole(client, COLOUR, stream=True))
    assert all(piece.usage is None and piece.choices for piece in without)


def test_the_client_for_asyncio(url: str) -> None:
    async def both() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            answered = client.chat.completions.create(model="tiny", messages=COLOUR, temperature=0)
            stream = await client.chat.completions.create(
                model="tiny",
                messages=ask("Describe the picture.", "banner.png"),
                temperature=0,
                stream=True,
            )

            async def pieces() -> AsyncIterator[str]:
                async for chunk in stream:
                    yield chunk.choices[0].delta.content or ""

            text, answer = await asyncio.gather(_joined(pieces()), answered)
            return answer.choices[0].message.content, text

    assert asyncio.run(both()) == ("red", DESCRIPTION)


async def _joined(pieces: AsyncIterator[str]) -> str:
    return "".join([piece async for piece in pieces])


@pytest.mark.parametrize(
    ("name", "question", "expected"),
    [
        ("banner.png", "How many objects are there?", "three"),
        ("triangle.png", "What shape is the yellow object?", "triangle"),
        ("triangle.png", "Is there a blue triangle?", "no"),
        ("tower.png", "What colour is the square?", "blue"),
        ("tower.png", "Is there a green circle?", "yes"),
        ("generated_2.png", "Is the square to the left or to the right of the triangle?", "left"),
        ("generated_3.png", "What colour is the triangle?", "yellow"),
    ],
)
def test_the_demos_questions(
    client: openai.OpenAI, name: str, question: str, expected: str
) -> None:
    assert whole(client, ask(question, name)).choices[0].message.content == expected


def test_several_pictures_between_texts(client: openai.OpenAI, url: str) -> None:
    first, second = (
        {"type": "image_url", "image_url": {"url": data_url(name)}}
        for name in ("tower.png", "triangle.png")
    )
    content = [{"type": "text", "text": "One:"}, first, {"type": "text", "text": "Two:"}, second]
    content.append({"type": "text", "text": "What colour is the square?"})
    answer = whole(client, [{"role": "user", "content": content}])
    assert answer.usage.prompt_tokens_details.image_tokens == 128
    again = whole(client, [{"role": "user", "content": content}])
    assert again.choices[0].message.content == answer.choices[0].message.content


def test_an_answer_goes_back_as_history(client: openai.OpenAI) -> None:
    answer = whole(client, COLOUR)
    history = [*COLOUR, answer.choices[0].message.model_dump()]
    history += [
        {"role": "user", "content": "Is the circle to the left or to the right of the square?"}
    ]
    assert whole(client, history).choices[0].message.content == "left"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_comes_before_the_rest(client: openai.OpenAI, role: str) -> None:
    plain = whole(client, COLOUR)
    words = "Answer in one word, and no more than that."
    told = whole(client, [{"role": role, "content": words}, *COLOUR], max_tokens=2)
    assert told.usage.prompt_tokens != plain.usage.prompt_tokens
    same = whole(client, [{"role": "system", "content": words}, *COLOUR], max_tokens=2)
    assert same.choices[0].message.content == told.choices[0].message.content
    assert same.usage.prompt_tokens == told.usage.prompt_tokens


def test_several_answers_repeat_with_their_seed(client: openai.OpenAI) -> None:
    def contents(**options: Any) -> list[str]:
        answer = whole(
            client,
            ask("Describe the picture.", "banner.png"),
            temperature=2.0,
            n=3,
            max_tokens=8,
            **options,
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage.completion_tokens <= 24
        return [choice.message.content for choice in answer.choices]

    first = contents(seed=-3)
    assert contents(seed=-3) == first
    assert contents(seed=4) != first
    assert len(set(first)) > 1


def test_several_streams_in_one(client: openai.OpenAI) -> None:
    texts = {0: "", 1: ""}
    ends = {}
    for chunk in whole(client, COLOUR, temperature=1.0, n=2, seed=1, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert texts == {0: "red", 1: "red"}
    assert ends == {0: "stop", 1: "stop"}


@pytest.mark.parametrize("stop", [" yellow", ["nothing of the kind", " yellow"]])
def test_a_text_that_ends_the_answer(client: openai.OpenAI, stop: Any) -> None:
    answer = whole(client, ask("Describe the picture.", "banner.png"), stop=stop)
    assert answer.choices[0].message.content == "a large green triangle, a large"
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_longest_answer(client: openai.OpenAI, name: str) -> None:
    answer = whole(client, ask("Describe the picture.", "banner.png"), **{name: 2})
    assert answer.usage.completion_tokens == 2
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("streams", [False, True])
def test_log_probabilities(client: openai.OpenAI, streams: bool) -> None:
    answered = whole(client, COLOUR, logprobs=True, top_logprobs=3, stream=streams)
    answers = list(answered) if streams else [answered]
    tokens = [
        token
        for answer in answers
        if (logprobs := answer.choices[0].logprobs)
        for token in logprobs.content
    ]
    assert "".join(token.token for token in tokens).strip() == "red"
    for token in tokens:
        assert -0.1 < token.logprob <= 0
        assert token.top_logprobs[0].token == token.token
        assert len(token.top_logprobs) == 3
        assert bytes(token.bytes).decode() == token.token


def test_options_of_our_own(client: openai.OpenAI) -> None:
    answer = whole(
        client,
        COLOUR,
        temperature=1.0,
        extra_body={"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True},
        max_tokens=3,
    )
    assert answer.usage.completion_tokens == 3
    assert answer.choices[0].finish_reason == "length"


def test_detail_that_has_no_effect_is_reported(client: openai.OpenAI) -> None:
    image = {"url": data_url("tower.png"), "detail": "high"}
    content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    answer = whole(client, messages, max_tokens=1)
    assert answer.warnings == ["detail has no effect: this model sees every picture in one way"]
    first, *more = whole(client, messages, max_tokens=1, stream=True)
    assert first.warnings == answer.warnings
    assert not any(hasattr(chunk, "warnings") for chunk in more)


def test_the_list_of_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object) == ("tiny", "model")
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served here"):
        client.models.retrieve("gpt-4")


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        whole(client, ask("What?", "banner.png"), n=99, temperature=1)
    assert (bad.value.code, bad.value.param, bad.value.type) == (
        "invalid_value", "n", "invalid_request_error",
    )  # fmt: skip
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4", messages=COLOUR)
    assert unknown.value.code == "model_not_found"
    broken = [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    ]}]  # fmt: skip
    for streams in (False, True):
        with pytest.raises(openai.BadRequestError) as image:
            whole(client, broken, stream=streams)
        assert (image.value.code, image.value.param) == ("invalid_image", "messages")


def test_keys(keyed_url: str) -> None:
    for key in ("first", "second"):
        with openai.OpenAI(base_url=f"{keyed_url}/v1", api_key=key) as client:
            assert [model.id for model in client.models.list()] == ["tiny"]
    with (
        openai.OpenAI(base_url=f"{keyed_url}/v1", api_key="third", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as wrong,
    ):
        client.models.list()
    assert wrong.value.code == "invalid_api_key"

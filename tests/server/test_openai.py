"""OpenAI's own client against the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from server_client import data_url


def user_message(prompt: str, *names: str) -> list[Any]:
    images = [{"type": "image_url", "image_url": {"url": data_url(name)}} for name in names]
    return [{"role": "user", "content": [*images, {"type": "text", "text": prompt}]}]


COLOUR = user_message("What colour is the circle?", "circle_and_square.png")
DESCRIPTION = "a large green triangle, a large yellow circle and a small red square"
"""The demo model's description of banner.png."""


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def create(client: openai.OpenAI, messages: list[Any], **options: Any) -> Any:
    return client.chat.completions.create(
        model="tiny", messages=messages, **{"temperature": 0} | options
    )


def test_a_whole_completion(client: openai.OpenAI) -> None:
    completion = create(client, COLOUR)
    (choice,) = completion.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "red")
    assert choice.finish_reason == "stop"
    assert completion.object == "chat.completion"
    assert completion.model == "tiny"
    assert completion.usage.prompt_tokens_details.image_tokens == 64
    assert (
        completion.usage.total_tokens
        == completion.usage.prompt_tokens + completion.usage.completion_tokens
    )
    assert completion.usage.prompt_tokens > 64


def test_a_stream(client: openai.OpenAI) -> None:
    chunks = list(
        create(
            client,
            user_message("Describe the picture.", "banner.png"),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *deltas, usage = chunks
    assert deltas[0].choices[0].delta.role == "assistant"
    assert "".join(delta.choices[0].delta.content or "" for delta in deltas) == DESCRIPTION
    assert len(deltas) > 5
    assert [delta.choices[0].finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [
        "stop"
    ]
    assert usage.choices == []
    assert usage.usage.prompt_tokens_details.image_tokens == 64
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    without = list(create(client, COLOUR, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in without)


def test_the_asyncio_client(url: str) -> None:
    async def both() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            pending = client.chat.completions.create(model="tiny", messages=COLOUR, temperature=0)
            stream = await client.chat.completions.create(
                model="tiny",
                messages=user_message("Describe the picture.", "banner.png"),
                temperature=0,
                stream=True,
            )

            async def deltas() -> AsyncIterator[str]:
                async for chunk in stream:
                    yield chunk.choices[0].delta.content or ""

            text, completion = await asyncio.gather(_join(deltas()), pending)
            return completion.choices[0].message.content, text

    assert asyncio.run(both()) == ("red", DESCRIPTION)


async def _join(deltas: AsyncIterator[str]) -> str:
    return "".join([delta async for delta in deltas])


@pytest.mark.parametrize(
    ("name", "prompt", "expected"),
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
def test_the_prompts_of_the_demo(
    client: openai.OpenAI, name: str, prompt: str, expected: str
) -> None:
    assert create(client, user_message(prompt, name)).choices[0].message.content == expected


def test_several_images_between_texts(client: openai.OpenAI, url: str) -> None:
    first, second = (
        {"type": "image_url", "image_url": {"url": data_url(name)}}
        for name in ("tower.png", "triangle.png")
    )
    content = [{"type": "text", "text": "One:"}, first, {"type": "text", "text": "Two:"}, second]
    content.append({"type": "text", "text": "What colour is the square?"})
    completion = create(client, [{"role": "user", "content": content}])
    assert completion.usage.prompt_tokens_details.image_tokens == 128
    second_completion = create(client, [{"role": "user", "content": content}])
    assert second_completion.choices[0].message.content == completion.choices[0].message.content


def test_a_completion_is_accepted_as_history(client: openai.OpenAI) -> None:
    completion = create(client, COLOUR)
    history = [*COLOUR, completion.choices[0].message.model_dump()]
    history += [
        {"role": "user", "content": "Is the circle to the left or to the right of the square?"}
    ]
    assert create(client, history).choices[0].message.content == "left"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_comes_before_the_rest(client: openai.OpenAI, role: str) -> None:
    without = create(client, COLOUR)
    system = "Answer in one word, and no more than that."
    first = create(client, [{"role": role, "content": system}, *COLOUR], max_tokens=2)
    assert first.usage.prompt_tokens != without.usage.prompt_tokens
    second = create(client, [{"role": "system", "content": system}, *COLOUR], max_tokens=2)
    assert second.choices[0].message.content == first.choices[0].message.content
    assert second.usage.prompt_tokens == first.usage.prompt_tokens


def test_several_completions_are_reproducible_with_a_seed(client: openai.OpenAI) -> None:
    def contents(**options: Any) -> list[str]:
        completion = create(
            client,
            user_message("Describe the picture.", "banner.png"),
            temperature=2.0,
            n=3,
            max_tokens=8,
            **options,
        )
        assert [choice.index for choice in completion.choices] == [0, 1, 2]
        assert completion.usage.completion_tokens <= 24
        return [choice.message.content for choice in completion.choices]

    first = contents(seed=-3)
    assert contents(seed=-3) == first
    assert contents(seed=4) != first
    assert len(set(first)) > 1


def test_several_greedy_completions_are_the_same(client: openai.OpenAI) -> None:
    completion = create(client, COLOUR, n=3)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert {choice.message.content for choice in completion.choices} == {"red"}


def test_several_completions_in_one_stream(client: openai.OpenAI) -> None:
    texts = {0: "", 1: ""}
    finish_reasons = {}
    for chunk in create(client, COLOUR, temperature=1.0, n=2, seed=1, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            finish_reasons[choice.index] = choice.finish_reason
    assert texts == {0: "red", 1: "red"}
    assert finish_reasons == {0: "stop", 1: "stop"}


@pytest.mark.parametrize("stop", [" yellow", ["not generated", " yellow"]])
def test_stop_strings(client: openai.OpenAI, stop: Any) -> None:
    completion = create(client, user_message("Describe the picture.", "banner.png"), stop=stop)
    assert completion.choices[0].message.content == "a large green triangle, a large"
    assert completion.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_maximum_number_of_tokens(client: openai.OpenAI, name: str) -> None:
    completion = create(client, user_message("Describe the picture.", "banner.png"), **{name: 2})
    assert completion.usage.completion_tokens == 2
    assert completion.choices[0].finish_reason == "length"


@pytest.mark.parametrize("streams", [False, True])
def test_log_probabilities(client: openai.OpenAI, streams: bool) -> None:
    result = create(client, COLOUR, logprobs=True, top_logprobs=3, stream=streams)
    responses = list(result) if streams else [result]
    tokens = [
        token
        for response in responses
        if (logprobs := response.choices[0].logprobs)
        for token in logprobs.content
    ]
    assert "".join(token.token for token in tokens).strip() == "red"
    for token in tokens:
        assert -0.1 < token.logprob <= 0
        assert token.top_logprobs[0].token == token.token
        assert len(token.top_logprobs) == 3
        assert bytes(token.bytes).decode() == token.token


def test_extensions_of_the_api(client: openai.OpenAI) -> None:
    completion = create(
        client,
        COLOUR,
        temperature=1.0,
        extra_body={"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True},
        max_tokens=3,
    )
    assert completion.usage.completion_tokens == 3
    assert completion.choices[0].finish_reason == "length"


def test_a_detail_without_effect_is_reported(client: openai.OpenAI) -> None:
    image = {"url": data_url("tower.png"), "detail": "high"}
    content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    completion = create(client, messages, max_tokens=1)
    assert completion.warnings == [
        "detail has no effect: this model encodes every image in the same way"
    ]
    first, *others = create(client, messages, max_tokens=1, stream=True)
    assert first.warnings == completion.warnings
    assert not any(hasattr(chunk, "warnings") for chunk in others)


def test_the_model_list(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object) == ("tiny", "model")
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served here"):
        client.models.retrieve("gpt-4")


def test_errors_are_those_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        create(client, user_message("What?", "banner.png"), n=99, temperature=1)
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
            create(client, broken, stream=streams)
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

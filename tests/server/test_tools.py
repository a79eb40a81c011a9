"""Tools, with OpenAI's client against a server whose chat template supports them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from server.conftest import DEMO, running
from tool_template import SOURCE, WEATHER

import vlcore
from vlcore.prompts.jinja_template import JinjaTemplate
from vlcore.server.tools import RequiredCallReader

MESSAGES = [{"role": "user", "content": "Is it warm in Rome?"}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALL = r'<tool_call>\{"name": "get_weather", "arguments": \{"city": "(Rome|Oslo)"\}\}</tool_call>'
"""A grammar with which the model calls the tool of its own accord."""


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    pipe = vlcore.pipeline(
        DEMO / "tiny-llava", device="cpu", dtype="float32", chat_template=JinjaTemplate(SOURCE)
    )
    with running(pipe) as server:
        host, port = server.address
        url = f"http://{host}:{port}/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            yield client


def create(client: openai.OpenAI, messages: Any = MESSAGES, **options: Any) -> Any:
    stated: dict[str, Any] = {"temperature": 0, "tools": [WEATHER], "max_tokens": 100}
    return client.chat.completions.create(model="tiny", messages=messages, **stated | options)


def collect(stream: Any) -> tuple[str, list[dict[str, Any]], str]:
    """Join the chunks of a stream as clients do."""
    text, calls, reason = "", list[dict[str, Any]](), ""
    for chunk in stream:
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for part in choice.delta.tool_calls or []:
            if part.index == len(calls):
                calls.append({"id": part.id, "name": part.function.name, "arguments": ""})
            calls[part.index]["arguments"] += part.function.arguments
    return text, calls, reason


@pytest.mark.parametrize("choice", ["required", NAMED, "auto", None])
def test_a_completion_calls_a_tool(client: openai.OpenAI, choice: Any) -> None:
    options: dict[str, Any] = {} if choice is None else {"tool_choice": choice}
    if choice in ("auto", None):
        options["extra_body"] = {"guided_regex": CALL}
    whole = create(client, **options).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert not whole.message.content
    text, calls, reason = collect(create(client, stream=True, **options))
    assert (text, reason) == ("", "tool_calls")
    assert len(calls) == len(whole.message.tool_calls) >= 1
    for call, streamed in zip(whole.message.tool_calls, calls, strict=True):
        assert call.type == "function"
        assert call.function.name == streamed["name"] == "get_weather"
        assert json.loads(call.function.arguments) == json.loads(streamed["arguments"])
        assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
        assert call.id.startswith("call_")


def test_a_call_and_its_result_are_sent_back(client: openai.OpenAI) -> None:
    message = create(client, tool_choice=NAMED).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    answer = create(client, [*MESSAGES, message, result], max_tokens=5)
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content is not None
    assert answer.usage.prompt_tokens > create(client, max_tokens=1).usage.prompt_tokens


def test_text_without_a_call_is_an_ordinary_completion(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"extra_body": {"guided_regex": "It is (warm|cold)[.]"}}
    whole = create(client, **options).choices[0]
    assert whole.finish_reason == "stop"
    assert whole.message.content in ("It is warm.", "It is cold.")
    assert collect(create(client, stream=True, **options)) == (whole.message.content, [], "stop")


def test_the_choice_none_leaves_the_tools_out(client: openai.OpenAI) -> None:
    without = create(client, tools=openai.NOT_GIVEN, max_tokens=1)
    none = create(client, tool_choice="none", max_tokens=1)
    assert none.usage.prompt_tokens == without.usage.prompt_tokens


def test_several_completions_have_their_own_calls(client: openai.OpenAI) -> None:
    completion = create(client, tool_choice=NAMED, n=3, temperature=1.5, seed=1)
    ids = {choice.message.tool_calls[0].id for choice in completion.choices}
    assert len(ids) == 3


def test_one_call_where_parallel_calls_are_off(client: openai.OpenAI) -> None:
    completion = create(client, tool_choice="required", parallel_tool_calls=False)
    assert len(completion.choices[0].message.tool_calls) == 1


def test_a_call_that_is_cut_off_has_the_reason_length(client: openai.OpenAI) -> None:
    (choice,) = create(client, tool_choice=NAMED, max_tokens=2).choices
    assert choice.finish_reason == "length"


def test_references_in_parameters_point_to_the_definitions_of_the_function(
    client: openai.OpenAI,
) -> None:
    parameters = {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"city": {"enum": ["Rome"]}},
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        message = create(client, tools=[tool], tool_choice=choice).choices[0].message
        assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Rome"}


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "invalid_value",
         "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tool_choice": "always"}, "invalid_value", "tool_choice"),
        ({"tools": [WEATHER] * 129}, "invalid_value", "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "invalid_value",
         "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}}],
          "tool_choice": "required"}, "invalid_grammar", "tools"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "invalid_value",
         "response_format"),
        ({"messages": [*MESSAGES, {"role": "tool", "content": "x", "tool_call_id": "c"}]},
         "invalid_prompt", "messages"),
    ],
)  # fmt: skip
def test_invalid_tools_are_refused(
    client: openai.OpenAI, options: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, **options)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_a_model_without_tools_refuses_them(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as tools:
            create(client)
        assert (tools.value.code, tools.value.param) == ("tools_not_supported", "tools")
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        history = [
            *MESSAGES,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "x"},
        ]
        with pytest.raises(openai.BadRequestError, match="does not support them") as messages:
            create(client, history, tools=openai.NOT_GIVEN)
        assert (messages.value.code, messages.value.param) == ("invalid_prompt", "messages")


def test_required_calls_are_returned_one_by_one() -> None:
    reader = RequiredCallReader()
    text = '[\n {"name":"f","parameters":{"a":"}"}}, {"name":"g","parameters":{}}]'
    found = []
    for position, character in enumerate(text):
        found += [(position, call) for call in reader.feed(character).tool_calls]
    assert [(call.name, call.arguments) for _, call in found] == [("f", '{"a": "}"}'), ("g", "{}")]
    assert found[0][0] < found[1][0] < len(text)
    assert reader.finish().tool_calls == ()

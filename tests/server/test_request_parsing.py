from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from vlcore.engines.grammar import Grammar
from vlcore.media.undecoded_video import UndecodedVideo
from vlcore.prompts.conversation import Conversation
from vlcore.prompts.messages import ImageSlot, Message, Text, ToolCall
from vlcore.server.errors import ApiError
from vlcore.server.request_parsing import ParsedRequest, parse_request
from vlcore.server.settings import ServerSettings

SETTINGS = ServerSettings(model_name="tiny", default_max_tokens=100, max_answers=4)
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:,"}}


def parse(
    *,
    image_options: frozenset[str] = frozenset(),
    settings: ServerSettings = SETTINGS,
    **options: Any,
) -> ParsedRequest:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]} | options
    return parse_request(json.dumps(body).encode(), settings, image_options, 1000)


def parse_error(**options: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(**options)
    return caught.value


def test_the_defaults() -> None:
    parsed = parse()
    assert parsed.conversation == Conversation((Message("user", (Text("Hi"),)),))
    config = parsed.config
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 1.0, 0, 1.0)
    assert (config.max_new_tokens, config.n, config.random_seed) == (100, 1, None)
    assert not parsed.stream
    assert parsed.num_top_logprobs is None


def test_null_is_the_same_as_absent() -> None:
    names = (
        "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
        "n", "stop", "seed", "logprobs", "top_logprobs", "top_k", "min_p", "repetition_penalty",
        "ignore_eos", "frequency_penalty", "presence_penalty", "response_format", "modalities",
        "tools", "tool_choice", "logit_bias", "user", "metadata", "store", "service_tier",
    )  # fmt: skip
    options: dict[str, Any] = dict.fromkeys(names)
    assert parse(**options) == parse()


@pytest.mark.parametrize("temperature", [0, 1e-6, 1e-300])
def test_temperature_0_is_greedy(temperature: float) -> None:
    config = parse(temperature=temperature, top_k=3, top_p=0.5, n=2).config
    assert (config.is_greedy, config.n) == (True, 2)


DEFAULTS = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, DEFAULTS),
        ({"temperature": None, "top_k": None}, DEFAULTS),
        ({"temperature": 1}, DEFAULTS | {"temperature": 1}),
        ({"top_p": 1, "top_k": -1}, DEFAULTS | {"top_p": 1, "top_k": 0}),
        ({"repetition_penalty": 1}, DEFAULTS | {"repetition_penalty": 1}),
        ({"min_p": 0.1}, DEFAULTS | {"min_p": 0.1}),
    ],
)
def test_options_that_are_not_set_have_the_servers_defaults(
    options: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = parse(settings=replace(SETTINGS, sampling_defaults=DEFAULTS), **options).config
    assert {name: getattr(config, name) for name in expected} == expected
    assert not config.is_greedy


def test_temperature_0_is_greedy_whatever_the_defaults_are() -> None:
    settings = replace(SETTINGS, sampling_defaults=DEFAULTS)
    assert parse(settings=settings, temperature=0).config.is_greedy


def test_a_model_may_be_greedy_by_default() -> None:
    settings = replace(SETTINGS, sampling_defaults={"temperature": 0})
    assert parse(settings=settings).config.is_greedy
    assert not parse(settings=settings, temperature=0.5).config.is_greedy


def test_top_p_0_is_greedy() -> None:
    assert parse(top_p=0).config.is_greedy


def test_whole_numbers_may_be_floats() -> None:
    options: dict[str, Any] = {
        "max_tokens": 8.0,
        "n": 2.0,
        "seed": 5.0,
        "top_k": 3.0,
        "top_logprobs": 2.0,
    }
    config = parse(**options, logprobs=True).config
    assert (config.max_new_tokens, config.n, config.random_seed) == (8, 2, 5)
    assert (config.top_k, config.logprobs) == (3, 2)


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ({"max_tokens": 7}, "max_new_tokens", 7),
        ({"max_completion_tokens": 7}, "max_new_tokens", 7),
        ({"max_completion_tokens": 7, "max_tokens": 9}, "max_new_tokens", 7),
        ({"max_tokens": 10**30}, "max_new_tokens", 1000),
        ({"temperature": 0.3}, "temperature", 0.3),
        ({"top_p": 0.3}, "top_p", 0.3),
        ({"top_k": 3}, "top_k", 3),
        ({"min_p": 0.3}, "min_p", 0.3),
        ({"repetition_penalty": 1.3}, "repetition_penalty", 1.3),
        ({"frequency_penalty": 0.5}, "frequency_penalty", 0.5),
        ({"presence_penalty": -2}, "presence_penalty", -2),
        ({"logit_bias": {"3": 1, "17": -100}}, "logit_bias", {3: 1, 17: -100}),
        ({"ignore_eos": True}, "ignore_eos", True),
        ({"n": 3}, "n", 3),
        ({"seed": 5}, "random_seed", 5),
        ({"seed": -1}, "random_seed", 2**64 - 1),
        ({"stop": "a string of more than sixteen characters"}, "stop_words",
         ("a string of more than sixteen characters",)),
        ({"stop": ["a", "b"]}, "stop_words", ("a", "b")),
        ({"stop": ""}, "stop_words", ()),
        ({"stop": ["", "b"]}, "stop_words", ("b",)),
        ({"top_k": -1}, "top_k", 0),
        ({"min_tokens": 3}, "min_new_tokens", 3),
        ({"stop_token_ids": [3, 4]}, "stop_token_ids", (3, 4)),
        ({"skip_special_tokens": False}, "skip_special_tokens", False),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": True, "top_logprobs": 5}, "logprobs", 5),
    ],
)  # fmt: skip
def test_an_option_reaches_the_engine(option: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(parse(**option).config, field) == value


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("options", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar.json_object()),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True,
          "description": "b", "schema": SCHEMA}}}, Grammar.json_schema(SCHEMA)),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": True}}},
         Grammar.json_schema(True)),
        ({"guided_json": SCHEMA}, Grammar.json_schema(SCHEMA)),
        ({"guided_json": json.dumps(SCHEMA)}, Grammar.json_schema(SCHEMA)),
        ({"guided_json": {}}, Grammar.json_schema({})),
        ({"guided_regex": "a+"}, Grammar.regex("a+")),
        ({"guided_choice": ["a", "b"]}, Grammar.choice(["a", "b"])),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar.json_schema(SCHEMA)),
        ({"structured_outputs": {"regex": "a+"}}, Grammar.regex("a+")),
        ({"structured_outputs": {"choice": ["a"]}}, Grammar.choice(["a"])),
        ({"structured_outputs": {"json_object": True}}, Grammar.json_object()),
        ({"structured_outputs": {}}, None),
    ],
)  # fmt: skip
def test_a_grammar_reaches_the_engine(options: dict[str, Any], grammar: Grammar | None) -> None:
    assert parse(**options).config.grammar == grammar


@pytest.mark.parametrize(
    ("options", "continues"),
    [
        ({}, True),
        ({"continue_final_message": True}, True),
        ({"add_generation_prompt": False}, True),
        ({"continue_final_message": True, "add_generation_prompt": False}, True),
        ({"continue_final_message": False}, False),
        ({"add_generation_prompt": True}, False),
        ({"continue_final_message": False, "add_generation_prompt": True}, False),
    ],
)
def test_a_last_message_of_the_assistant_is_continued_or_not(
    options: dict[str, Any], continues: bool
) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It is"}]
    parsed = parse(messages=messages, **options)
    assert parsed.conversation[-1] == Message("assistant", (Text("It is"),))
    assert (parsed.config.continue_final_message is not False) is continues
    for contradiction in (True, False):
        both: dict[str, Any] = {
            "continue_final_message": contradiction,
            "add_generation_prompt": contradiction,
        }
        error = parse_error(messages=messages, **both)
        assert error.param == "add_generation_prompt"


@pytest.mark.parametrize(
    "neutral",
    [
        {"frequency_penalty": 0}, {"presence_penalty": 0.0}, {"response_format": {"type": "text"}},
        {"modalities": ["text"]}, {"tools": []}, {"tool_choice": "auto"}, {"logit_bias": {}},
        {"user": "me"}, {"metadata": {"a": [1]}}, {"store": True}, {"service_tier": "auto"},
        {"parallel_tool_calls": False}, {"functions": []}, {"function_call": "auto"},
        {"best_of": 1}, {"echo": False}, {"stop": ""}, {"stop": []}, {"top_logprobs": 0},
        {"skip_special_tokens": True}, {"stop_token_ids": []}, {"add_generation_prompt": True},
        {"continue_final_message": False}, {"safety_identifier": "a"}, {"prompt_cache_key": "a"},
        {"reasoning_effort": None}, {"length_penalty": 1}, {"use_beam_search": False},
        {"chat_template_kwargs": {}}, {"an_unknown_field": None}, {"stream_options": {}},
        {"stream_options": {"include_usage": False}}, {"allowed_token_ids": []}, {"bad_words": []},
        {"documents": []}, {"logits_processors": []}, {"mm_processor_kwargs": {}},
        {"typical_p": 1.0}, {"early_stopping": False}, {"add_special_tokens": False},
    ],
)  # fmt: skip
def test_neutral_values_of_unsupported_fields_are_accepted(
    neutral: dict[str, Any],
) -> None:
    assert parse(**neutral) == parse()


@pytest.mark.parametrize(
    ("option", "param"),
    [
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}},
         "response_format.json_schema.schema"),
        ({"modalities": ["audio"]}, "modalities.0"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": 3}, "tool_choice"),
        ({"logit_bias": {"3": 101}}, "logit_bias.3"),
        ({"logit_bias": {"three": 1}}, "logit_bias.three"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"best_of": 2}, "best_of"),
        ({"allowed_token_ids": [1]}, "allowed_token_ids"),
        ({"bad_words": ["a"]}, "bad_words"),
        ({"logits_processors": ["a"]}, "logits_processors"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"typical_p": 0.5}, "typical_p"),
        ({"early_stopping": True}, "early_stopping"),
        ({"echo": True}, "echo"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"guided_json": 3}, "guided_json"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_grammar": "root ::= x"}, "guided_grammar"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs.grammar"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "response_format"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"messages": [{"role": "user", "content": [IMAGE_PART, IMAGE_PART | {"image_url": 3}]}]},
         "messages.0.content.1.image_url"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]},
         "messages.0.content.0.text"),
        ({"stop": ["a", 3]}, "stop.1"),
        ({"stop": {}}, "stop"),
    ],
)  # fmt: skip
def test_an_error_names_its_field(option: dict[str, Any], param: str) -> None:
    error = parse_error(**option)
    assert (error.status, error.param) == (400, param)
    assert error.message.startswith(f"{param}: ")


def test_values_are_not_repeated() -> None:
    error = parse_error(temperature="x" * 10_000)
    assert len(error.message) < 200


def test_a_model_of_another_name() -> None:
    error = parse_error(model="other")
    assert (error.status, error.code) == (404, "model_not_found")
    assert error.message == "the model 'other' is not served here; the served one is 'tiny'"


def test_images_keep_their_position_and_options() -> None:
    image = {"url": "data:,", "max_tiles": 3, "detail": "auto"}
    content = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": image}]
    parsed = parse(messages=[{"role": "user", "content": content}])
    assert parsed.conversation.images == ("data:,",)
    (message,) = parsed.conversation
    assert message.content == (Text("a"), ImageSlot(0, options={"max_tiles": 3}))


def test_detail_is_passed_on_or_reported() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}
    messages = [{"role": "user", "content": [image, image]}]
    parsed = parse(messages=messages)
    assert len(parsed.warnings) == 1
    assert "detail has no effect" in parsed.warnings[0]
    assert parsed.conversation.image_options == [{}, {}]
    supported = parse(messages=messages, image_options=frozenset({"detail"}))
    assert supported.warnings == ()
    assert supported.conversation.image_options == [{"detail": "low"}] * 2


def test_the_developer_role_is_the_system_role() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert [message.role for message in parse(messages=messages).conversation] == ["system", "user"]


def test_the_message_of_a_completion_is_accepted_back() -> None:
    reply = {
        "role": "assistant", "content": "red", "refusal": None, "audio": None,
        "function_call": None, "tool_calls": None, "annotations": [], "regions": [{"label": "x"}],
    }  # fmt: skip
    messages = [{"role": "user", "content": "Hi"}, reply, {"role": "user", "content": "Hi"}]
    assert parse(messages=messages).conversation[1] == Message("assistant", (Text("red"),))
    tool = reply | {"tool_calls": [{"id": "1"}]}
    error = parse_error(messages=[messages[0], tool, messages[2]])
    assert error.param == "messages.1.tool_calls.0.function"


@pytest.mark.parametrize(
    "reply",
    [
        {"role": "assistant"},
        {"role": "assistant", "content": None, "tool_calls": [], "function_call": None},
        {"role": "assistant", "content": "", "reasoning_content": "so", "reasoning": "so"},
        {"role": "assistant", "content": [], "refusal": "no"},
    ],
)
def test_an_assistant_message_without_text_is_empty(reply: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "Hi"}, reply, {"role": "user", "content": "Hi"}]
    parsed = parse(messages=messages)
    assert parsed.conversation[1].text == ""
    assert parsed.warnings == ()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": "data:,"},
        {"type": "image_url", "image_url": {"url": "data:,"}, "cache_control": {"type": "x"}},
        {"type": "input_image", "image_url": "data:,", "detail": "auto", "file_id": None},
    ],
)
def test_forms_of_an_image_part(part: dict[str, Any]) -> None:
    text = {"type": "input_text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    parsed = parse(messages=[{"role": "user", "content": [part, text]}])
    assert parsed.conversation.images == ("data:,",)
    assert parsed.conversation[0].content == (ImageSlot(0), Text("Hi"))
    assert parsed.warnings == ()


UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"speed": 9}, "speed"),
    ({"speed": [{"a": 1}]}, "speed"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"messages": [{"role": "user", "content": "Hi", "weight": 0}]}, "messages.0.weight"),
    (
        {"messages": [{"role": "user", "content": [IMAGE_PART | {"x": 1}]}]},
        "messages.0.content.0.x",
    ),
]


@pytest.mark.parametrize(("option", "name"), UNKNOWN)
def test_an_unknown_field_is_ignored_and_named(option: dict[str, Any], name: str) -> None:
    assert parse(**option).warnings == (f"unknown fields are ignored: {name!r}",)


@pytest.mark.parametrize(("option", "name"), UNKNOWN)
def test_a_strict_server_refuses_an_unknown_field(option: dict[str, Any], name: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]} | option
    strict = ServerSettings(model_name="tiny", strict=True)
    with pytest.raises(ApiError) as caught:
        parse_request(json.dumps(body).encode(), strict, frozenset(), 1000)
    assert (caught.value.code, caught.value.param) == ("unknown_parameter", name)


def test_many_unknown_fields_are_named_in_part() -> None:
    fields: dict[str, Any] = {f"field_{number}": 1 for number in range(20)}
    (warning,) = parse(**fields).warnings
    assert "'field_7'" in warning
    assert "and 12 others" in warning


@pytest.mark.parametrize("url", ["data:video/mp4;base64,AAAA", "https://example.org/clip"])
def test_videos_and_their_options(url: str) -> None:
    parts = [
        {"type": "video_url", "video_url": url},
        {"type": "video_url", "video_url": {"url": url, "fps": 0.5, "scale": 2, "top": None}},
    ]
    parsed = parse(messages=[{"role": "user", "content": parts}])
    assert parsed.conversation.images == (UndecodedVideo(url), UndecodedVideo(url, {"fps": 0.5}))
    assert parsed.conversation.slots == (ImageSlot(0, "video"), ImageSlot(1, "video", {"scale": 2}))


def test_a_large_data_url_of_a_video_is_restored() -> None:
    url = "data:video/mp4;base64," + "A" * 40_000
    parsed = parse(
        messages=[{"role": "user", "content": [{"type": "video_url", "video_url": url}]}]
    )
    assert parsed.conversation.images == (UndecodedVideo(url),)


def test_unknown_fields_of_calls_are_left_out() -> None:
    function = {"name": "f", "arguments": "{}", "more": {"x": 1}}
    call = {"id": "1", "type": "function", "function": function, "index": 0}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ]
    assert parse(messages=messages).conversation.messages[1].tool_calls == (
        ToolCall("f", "{}", "1"),
    )

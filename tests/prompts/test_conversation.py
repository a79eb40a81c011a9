from __future__ import annotations

from typing import Any

import pytest

from vlcore.errors import PromptError
from vlcore.prompts.conversation import Conversation, parse_messages, read_conversation
from vlcore.prompts.messages import ImageSlot, Message, Text, ToolCall

SYSTEM = {"role": "system", "content": "be kind"}
REQUEST = {"role": "user", "content": "hello"}
REPLY = {"role": "assistant", "content": "hi"}
IMAGE = {"type": "image", "image": None}


def user(*content: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in content]
    return {"role": "user", "content": parts}


def test_a_text_becomes_one_part() -> None:
    assert parse_messages([REQUEST]) == (Message("user", (Text("hello"),)),)


def test_messages_pass_through() -> None:
    message = Message("user", (ImageSlot(0), Text("hello")))
    (parsed,) = parse_messages([message])
    assert parsed is message


def test_images_are_numbered_over_the_whole_conversation() -> None:
    first, _, second = parse_messages(
        [
            user("a", {"type": "image_url", "image_url": {"url": "x.png"}}, IMAGE),
            REPLY,
            user({"type": "image_url", "image_url": "y.png"}, "b"),
        ]
    )
    assert first.content == (Text("a"), ImageSlot(0), ImageSlot(1))
    assert second.content == (ImageSlot(2), Text("b"))


def test_images_are_numbered_after_those_of_message_values() -> None:
    ready = Message("user", (ImageSlot(0), ImageSlot(1), Text("a")))
    parsed = parse_messages([ready, REPLY, user(IMAGE)])
    assert parsed[2].content == (ImageSlot(2),)


def test_an_image_part_may_have_no_image() -> None:
    (parsed,) = parse_messages([user({"type": "image"}, {"type": "image_url"})])
    assert parsed.content == (ImageSlot(0), ImageSlot(1))


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ({"type": "image_url", "image_url": {"url": "x", "detail": "low"}}, {"detail": "low"}),
        ({"type": "image_url", "image_url": {"url": "x", "detail": "auto"}}, {}),
        ({"type": "image", "image": "x", "max_pixels": 4}, {"max_pixels": 4}),
        ({"type": "image_url", "image_url": "x", "detail": "high"}, {"detail": "high"}),
    ],
)
def test_image_options_are_kept_in_the_slot(part: dict[str, Any], options: dict[str, Any]) -> None:
    ((slot,),) = (message.content for message in parse_messages([user(part)]))
    assert isinstance(slot, ImageSlot)
    assert slot.options == options


@pytest.mark.parametrize("content", ["<image>", "</s>", "[INST]", "<|im_end|>", "{{ 7*7 }}"])
def test_text_that_looks_like_a_token_is_text(content: str) -> None:
    for message in ({"role": "user", "content": content}, user(content)):
        assert parse_messages([message])[0].content == (Text(content),)


def test_the_text_of_a_message_joins_its_parts() -> None:
    assert Message("user", (Text("a"), ImageSlot(0), Text("b"))).text == "a\nb"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "at least one message"),
        (["hello"], "message 0 must be a mapping.*not str"),
        ([{"content": "x"}], "message 0 needs a role: one of system, user, assistant"),
        ([{"role": 3, "content": "x"}], "message 0 needs a role"),
        ([{"role": "tool", "content": "x"}], "message 0 is the result of a tool"),
        ([REQUEST, REPLY, {"role": "tool", "content": "x"}], "message 2 is the result of a tool"),
        ([{"role": "robot", "content": "x"}], "message 0 has role 'robot'; expected one of system"),
        ([REQUEST, {"role": "user"}], "message 1 needs content.*not NoneType"),
        ([{"role": "user", "content": 5}], "message 0 needs content.*not int"),
        ([{"role": "user", "content": b"x"}], "message 0 needs content.*not bytes"),
        ([user({"type": "audio"})], "message 0 has an invalid part of type 'audio'"),
        (
            [{"role": "system", "content": [{"type": "video"}]}, REQUEST],
            r"0 \(system\) has a video",
        ),
        ([user({"text": "x"})], "message 0 has an invalid part of type None"),
        ([user({"type": "text"})], "message 0 has an invalid part of type 'text'"),
        ([user({"type": "text", "text": 4})], "invalid part of type 'text'"),
        ([{"role": "user", "content": ["x"]}], "message 0 has an invalid part of type 'str'"),
        ([REQUEST, {"role": "system", "content": "x"}, REQUEST], "message 1 is a system message"),
        ([{"role": "system", "content": [IMAGE]}, REQUEST], r"0 \(system\) has an image"),
        (
            [REQUEST, {"role": "assistant", "content": [IMAGE]}, REQUEST],
            r"message 1 \(assistant\) has an image",
        ),
        ([{"role": "system", "content": "x"}], "needs a message of the user"),
        ([REQUEST, REPLY | {"tool_calls": [{"id": "1"}]}], "message 1 has an invalid call"),
        (
            [
                REQUEST,
                REPLY | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": "["}}]},
            ],
            "message 1 has an invalid call",
        ),
        ([REQUEST | {"tool_calls": [CALL]}, REPLY], r"message 0 \(user\) has tool_calls"),
        ([REQUEST, REPLY | {"tool_calls": [CALL]}], "the last message of the conversation calls"),
        ([REQUEST, REPLY | {"function_call": {"name": "f"}}], "message 1 has function_call"),
        ([Message("robot", (Text("x"),))], "has role 'robot'"),
    ],
)
def test_an_invalid_conversation_is_rejected(messages: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        parse_messages(messages)


# -- what clients send


@pytest.mark.parametrize(
    ("part", "image"),
    [
        ({"type": "image_url", "image_url": "a.png"}, "a.png"),
        ({"type": "image_url", "image_url": {"url": "a.png", "detail": "auto"}}, "a.png"),
        ({"type": "input_image", "image_url": "a.png"}, "a.png"),
        ({"type": "input_image", "image_url": {"url": "a.png"}, "detail": None}, "a.png"),
        ({"type": "image", "image": "a.png", "cache_control": {"type": "ephemeral"}}, "a.png"),
        ({"type": "image_url", "image_url": {"url": "a.png", "format": "image/png"}}, "a.png"),
        ({"type": "image", "url": "a.png", "id": 7}, "a.png"),
        ({"type": "image", "path": "a.png", "image_url": None}, "a.png"),
    ],
)
def test_image_parts_of_all_kinds_are_read(part: dict[str, Any], image: str) -> None:
    conversation = read_conversation([user(part)])
    assert conversation.images == (image,)
    assert conversation.messages[0].content == (ImageSlot(0),)
    assert conversation.image_options == [{}]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (" data:image/png;base64,AA==\n", "data:image/png;base64,AA=="),
        ("\ufeff\tHTTPS://a/b.png ", "HTTPS://a/b.png"),
        (" a file.png ", " a file.png "),
    ],
)
def test_white_space_around_a_url_is_ignored(source: str, expected: str) -> None:
    part = {"type": "image_url", "image_url": {"url": source}}
    assert read_conversation([user(part)]).images == (expected,)


@pytest.mark.parametrize("kind", ["text", "input_text", "output_text"])
def test_text_parts_of_all_kinds_are_read(kind: str) -> None:
    part = {"type": kind, "text": "a", "cache_control": {"type": "ephemeral"}, "annotations": []}
    assert parse_messages([user(part)]) == (Message("user", (Text("a"),)),)


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": []}, {"content": ""}])
def test_a_message_of_the_assistant_may_have_no_content(content: dict[str, Any]) -> None:
    reply: dict[str, Any] = {
        "role": "assistant",
        "tool_calls": [],
        "function_call": None,
        "audio": None,
    }
    parsed = parse_messages([REQUEST, reply | content, REQUEST])
    assert parsed[1] == Message("assistant", (Text(""),))


def test_other_fields_of_a_message_are_ignored() -> None:
    reply = dict[str, Any](REPLY) | {
        "reasoning_content": "hm",
        "refusal": None,
        "name": "bot",
        "annotations": [],
    }
    assert parse_messages([REQUEST, reply, REQUEST]) == parse_messages([REQUEST, REPLY, REQUEST])


def test_the_developer_role_is_the_system_role() -> None:
    developer = SYSTEM | {"role": "developer"}
    assert parse_messages([developer, REQUEST]) == parse_messages([SYSTEM, REQUEST])


# -- joining


def test_messages_of_one_role_in_a_row_are_joined() -> None:
    parsed = parse_messages([user("a", IMAGE), user("b"), user(IMAGE, "c"), REPLY, REPLY, REQUEST])
    assert parsed == (
        Message("user", (Text("a"), ImageSlot(0), Text("b"), ImageSlot(1), Text("c"))),
        Message("assistant", (Text("hi\nhi"),)),
        Message("user", (Text("hello"),)),
    )


def test_an_empty_text_adds_no_line_break() -> None:
    empty = {"role": "assistant", "content": None}
    parsed = parse_messages([REQUEST, empty, REPLY, empty, REQUEST, user("")])
    assert [message.text for message in parsed] == ["hello", "hi", "hello"]


def test_system_messages_at_the_front_are_joined_and_later_ones_rejected() -> None:
    brief = {"role": "developer", "content": "be brief"}
    assert parse_messages([SYSTEM, brief, REQUEST])[0].text == "be kind\nbe brief"
    with pytest.raises(PromptError, match="message 3 is a system message"):
        parse_messages([SYSTEM, brief, REQUEST, SYSTEM, REQUEST])


def test_messages_are_joined_only_once() -> None:
    parsed = parse_messages([SYSTEM, SYSTEM, REQUEST, REQUEST])
    assert parse_messages(parsed) == parsed


# -- continuing the last message


def test_a_last_message_of_the_assistant_is_continued() -> None:
    assert read_conversation([REQUEST, REPLY]).continues_final_message
    assert not read_conversation([REQUEST]).continues_final_message
    conversation = Conversation(parse_messages([REQUEST, REPLY]), continue_final_message=False)
    assert not conversation.continues_final_message


def test_only_a_message_of_the_assistant_can_be_continued() -> None:
    with pytest.raises(PromptError, match="continue_final_message needs a last message of the as"):
        Conversation(parse_messages([REQUEST]), continue_final_message=True)


def test_a_response_continues_the_last_message_or_follows_it() -> None:
    continued = read_conversation([REQUEST, REPLY]).with_response(" there")
    assert [message.text for message in continued] == ["hello", "hi there"]
    answered = read_conversation([REQUEST]).with_response("hi")
    assert [message.text for message in answered] == ["hello", "hi"]


def test_calls_of_tools_and_their_results_are_separate_messages() -> None:
    result = {"role": "tool", "content": "x", "tool_call_id": "c1"}
    calls = REPLY | {"content": None, "tool_calls": [CALL]}
    conversation = read_conversation([REQUEST, calls, result, result, REQUEST])
    assert [message.role for message in conversation] == [
        "user", "assistant", "tool", "tool", "user",
    ]  # fmt: skip
    assert conversation[1].tool_calls == (ToolCall("f", '{"a": 1}', "c1"),)
    assert conversation[2].tool_call_id == "c1"
    assert conversation.uses_tools
    assert not read_conversation([REQUEST]).uses_tools

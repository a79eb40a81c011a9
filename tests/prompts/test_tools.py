from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from tool_template import SOURCE, WEATHER

from vlcore.errors import PromptError
from vlcore.prompts.chat_template import RoleTemplate, write_prompt
from vlcore.prompts.conversation import Conversation, read_conversation
from vlcore.prompts.jinja_template import JinjaTemplate
from vlcore.prompts.limits import PromptLimits
from vlcore.prompts.messages import Control, Text, ToolCall
from vlcore.prompts.tools import HERMES_FORMAT, ToolCallParser, ToolDelta

TEMPLATE = JinjaTemplate(SOURCE)
QUESTION = {"role": "user", "content": "Is it warm?"}
ARGUMENTS = {"city": 'Ro"me</s>', "</s>": [1, None, {"x": "</s>"}]}
CALL = {"id": "c", "type": "function",
        "function": {"name": "get_weather", "arguments": json.dumps(ARGUMENTS)}}  # fmt: skip
HISTORY: list[dict[str, Any]] = [
    QUESTION,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny</s>", "tool_call_id": "c"},
]


def conversation(messages: list[dict[str, Any]], *tools: Any) -> Conversation:
    return replace(read_conversation(messages), tools=tools)


def test_the_template_is_given_tools_calls_and_results() -> None:
    prompt = TEMPLATE.render(conversation(HISTORY, WEATHER))
    (tools,) = re.findall(r"^{.*}$", prompt, re.MULTILINE)
    (call,) = re.findall(r"<tool_call>(.*)</tool_call>", prompt)
    assert json.loads(tools) == WEATHER
    called = json.loads(call)
    assert called == {"name": "get_weather", "arguments": ARGUMENTS}
    assert "<|tool|><tool_response>sunny</s></tool_response>" in prompt
    assert prompt.endswith("<|assistant|>")


def test_no_text_of_a_tool_a_call_or_a_result_is_text_of_the_template() -> None:
    for part in TEMPLATE.messages2prompt(conversation(HISTORY, WEATHER)):
        if isinstance(part, Control):
            for typed in ("</s>", "city", "Rome", "get_weather", "sunny", "weather of"):
                assert typed not in part.text
    texts = [p.text for p in TEMPLATE.messages2prompt(conversation(HISTORY, WEATHER))
             if isinstance(p, Text)]  # fmt: skip
    assert "sunny</s>" in texts


@pytest.mark.parametrize(
    ("source", "supports"),
    [
        (SOURCE, True),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
        ("{% if tools %}{{ raise_exception('no tools') }}{% endif %}{{ messages }}", False),
    ],
)
def test_whether_a_template_supports_tools_is_found_by_rendering(
    source: str, supports: bool
) -> None:
    assert JinjaTemplate(source).supports_tools is supports


def test_a_template_without_tools_refuses_a_conversation_with_them() -> None:
    roles = RoleTemplate(user_prefix="U", user_suffix="", assistant_prefix="A")
    plain = JinjaTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    for template in (roles, plain):
        for asked in (conversation(HISTORY), conversation([QUESTION], WEATHER)):
            with pytest.raises(PromptError, match="chat template does not support them"):
                write_prompt(template, asked)


def test_texts_of_tools_and_calls_count_as_characters_of_the_prompt() -> None:
    limits = PromptLimits(max_prompt_chars=60)
    limits.check_chars(conversation([QUESTION]))
    for asked in (conversation(HISTORY), conversation([QUESTION], WEATHER)):
        with pytest.raises(PromptError, match="max_prompt_chars"):
            limits.check_chars(asked)


def test_the_format_of_calls_is_stated_or_found_in_the_template() -> None:
    assert TEMPLATE.response_template == HERMES_FORMAT
    assert JinjaTemplate("{{ messages }}").response_template is None
    stated = {"start_anchor": "x", "fields": {"content": {}}}
    assert JinjaTemplate(SOURCE, response_template=stated).response_template == stated


ANSWERS = [
    ("It is warm.", "It is warm.", []),
    ('<tool_call>\n{"name": "f", "arguments": {"a": "é<"}}\n</tool_call>', "",
     [("f", {"a": "é<"})]),
    ('Wait. <tool_call>{"name": "f"}</tool_call> <tool_call>{"name": "g", "arguments": {}}'
     '</tool_call> Done', "Wait.   Done", [("f", {}), ("g", {})]),
    ("<tool_call>{broken</tool_call> and more", "<tool_call>{broken</tool_call> and more", []),
    ('<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
    ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
     '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', []),
    ('<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', []),
    ("1 < 2 <tool", "1 < 2 <tool", []),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "text", "calls"), ANSWERS)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_read_from_an_answer_however_it_is_cut(
    answer: str, text: str, calls: list[tuple[str, Any]], size: int
) -> None:
    parser = ToolCallParser(HERMES_FORMAT)
    deltas = [parser.feed(answer[i : i + size]) for i in range(0, len(answer), size)]
    deltas.append(parser.finish())
    assert "".join(delta.text for delta in deltas) == text
    found = [call for delta in deltas for call in delta.tool_calls]
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls


def test_text_before_a_call_is_returned_at_once() -> None:
    parser = ToolCallParser(HERMES_FORMAT)
    assert parser.feed("It is") == ToolDelta("It is")
    assert parser.feed(" <tool_") == ToolDelta(" ")
    assert parser.feed("call>") == ToolDelta()
    delta = parser.feed('{"name": "f", "arguments": {}}</tool_call>')
    assert delta.tool_calls == (ToolCall("f", "{}"),)

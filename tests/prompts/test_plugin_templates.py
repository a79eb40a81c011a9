"""All templates of the project's plugins write every conversation that can be read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from vl_plugin_idefics3.template import Idefics3Template
from vl_plugin_llava.template import TEMPLATES as LLAVA
from vl_plugin_qwen.template import TEMPLATES as QWEN
from vl_plugin_yi.template import TEMPLATE as YI

from vlcore.prompts.chat_template import ChatTemplate, RoleTemplate
from vlcore.prompts.conversation import read_conversation

SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
TEMPLATES: dict[str, ChatTemplate] = {
    **{f"llava {name}": template for name, template in LLAVA.items()},
    **{f"qwen {name}": template for name, template in QWEN.items()},
    "yi": YI,
    "idefics3": Idefics3Template(SMOLVLM),
}
SYSTEM: dict[str, Any] = {"role": "system", "content": "be kind"}
REQUEST: dict[str, Any] = {
    "role": "user",
    "content": [{"type": "image"}, {"type": "text", "text": "what?"}],
}
REPLY: dict[str, Any] = {"role": "assistant", "content": "a cat"}


@pytest.fixture(params=TEMPLATES)
def template(request: pytest.FixtureRequest) -> ChatTemplate:
    return TEMPLATES[request.param]


def test_a_continued_prompt_is_the_beginning_of_the_complete_one(template: ChatTemplate) -> None:
    messages = [SYSTEM, REQUEST, REPLY]
    continued = template.render(messages)
    assert continued.endswith("a cat")
    assert continued.startswith(template.render(messages[:-1]))
    assert template.render([*messages, REQUEST]).startswith(continued)
    complete = replace(read_conversation(messages), continue_final_message=False)
    assert template.render(complete).startswith(continued)


def test_a_conversation_that_begins_with_the_assistant_keeps_all_of_it(
    template: ChatTemplate,
) -> None:
    messages = [SYSTEM, SYSTEM, REPLY, REQUEST]
    prompt = template.render(messages)
    mark = "Assistant: "
    if isinstance(template, RoleTemplate):
        mark = template.assistant_prefix + template.answer_prefix
    expected = ("be kind\nbe kind", f"{mark}a cat", "<image>", "what?")
    positions = [prompt.index(text) for text in expected]
    assert positions == sorted(positions)


def test_messages_in_a_row_are_one_message(template: ChatTemplate) -> None:
    several = [REQUEST, {"role": "user", "content": "and?"}]
    one = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?\nand?"}]}
    assert template.render(several) == template.render([one])

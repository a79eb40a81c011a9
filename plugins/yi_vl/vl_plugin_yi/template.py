"""Yi-VL's chat template.

Source: ``conversation.py`` and ``cli.py`` of the released Yi-VL code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlcore import Message, OptionError, PromptPart, RoleTemplate, Text, parse_messages

NAME = "mm_default"


class YiTemplate(RoleTemplate):
    """Turns marked ``### Human:`` and ``### Assistant:``."""

    def messages2prompt(
        self, messages: Sequence[Message | Mapping[str, Any]]
    ) -> tuple[PromptPart, ...]:
        """Turn a conversation into a prompt; earlier answers are stripped, as the release does.

        An answer that ended before ``###`` ends with a line break, which would stand there twice.
        """
        return super().messages2prompt([_stripped(turn) for turn in parse_messages(messages)])


TEMPLATE = YiTemplate(
    system=(
        "This is a chat between an inquisitive human and an AI assistant. Assume the role of the "
        "AI assistant. Read all the images carefully, and respond to the human's questions with "
        "informative, helpful, detailed and polite answers. "
        "这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。"
        "仔细阅读所有的图像，并对人类的问题做出信息丰富、有帮助、详细的和礼貌的回答。"
    ),
    system_suffix="\n\n",
    user_prefix="### Human: ",
    user_suffix="\n",
    assistant_prefix="### Assistant:",
    answer_prefix=" ",
    answer_suffix="\n",
    stop=("###",),
)


def load_chat_template(name: str | None) -> YiTemplate:
    """Give the template.

    Raises:
        OptionError: another one is asked for.
    """
    if name not in (None, NAME):
        raise OptionError(f"Yi-VL has no chat template {name!r}; it has {NAME}")
    return TEMPLATE


def _stripped(message: Message) -> Message:
    if message.role != "assistant":
        return message
    return Message(message.role, (Text(message.text.strip()),))

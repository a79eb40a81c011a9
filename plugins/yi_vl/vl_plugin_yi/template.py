"""Yi-VL's chat template.

Source: ``conversation.py`` and ``cli.py`` of the Yi-VL reference implementation.
"""

from __future__ import annotations

from vlcore import OptionError, PromptPart, RoleTemplate, Text

NAME = "mm_default"


class YiTemplate(RoleTemplate):
    """Messages with the prefixes ``### Human:`` and ``### Assistant:``."""

    def answer2parts(self, answer: str) -> tuple[PromptPart, ...]:
        """Strip an earlier answer, as the reference implementation does.

        An answer that ended before ``###`` ends with a line break, which the template adds too.
        """
        return (Text(answer.strip()),)


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
    """Return the template.

    Raises:
        OptionError: another template is requested.
    """
    if name not in (None, NAME):
        raise OptionError(f"Yi-VL has no chat template {name!r}; it has {NAME}")
    return TEMPLATE

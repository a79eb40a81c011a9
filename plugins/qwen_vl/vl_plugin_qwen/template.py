"""Qwen-VL's chat templates, by the values of ``chat_format`` in the reference implementation.

Source: ``qwen_generation_utils.py`` and ``from_list_format`` in ``tokenization_qwen.py`` of the
Qwen-VL reference implementation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vl_plugin_qwen.boxes import parse_answer
from vl_plugin_qwen.vocabulary import END_OF_TEXT, NOTATION
from vlcore import ChatTemplate, Checkpoint, Control, OptionError, Region, RoleTemplate, Text

_NOTATION = re.compile(f"({'|'.join(map(re.escape, NOTATION))})")


@dataclass(frozen=True)
class QwenTemplate(RoleTemplate):
    """Numbers the images of each message from 1, and finds boxes in completions."""

    image_prefix: str = "Picture {number}: <img>"
    image_suffix: str = "</img>\n"

    def answer2parts(self, answer: str) -> tuple[Text | Control, ...]:
        """Keep the box tokens of an earlier completion as tokens."""
        return tuple(
            Control(chunk) if chunk in NOTATION else Text(chunk)
            for chunk in _NOTATION.split(answer)
        )

    def regions(self, answer: str, size: tuple[int, int]) -> tuple[Region, ...]:
        """Find the boxes in a completion; see :func:`~vl_plugin_qwen.boxes.parse_answer`."""
        return tuple(item for item in parse_answer(answer, size) if isinstance(item, Region))


TEMPLATES = {
    "chatml": QwenTemplate(
        system="You are a helpful assistant.",
        system_prefix="<|im_start|>system\n",
        system_suffix="<|im_end|>\n",
        user_prefix="<|im_start|>user\n",
        user_suffix="<|im_end|>\n",
        assistant_prefix="<|im_start|>assistant\n",
        answer_suffix="<|im_end|>\n",
        stop=("<|im_end|>", "<|im_start|>"),
    ),
    # The base model continues the given text.
    "raw": QwenTemplate(user_prefix="", user_suffix="", assistant_prefix="", stop=(END_OF_TEXT,)),
}


def load_chat_template(checkpoint: Checkpoint, name: str | None) -> ChatTemplate:
    """Return the named template, or the one that ``generation_config.json`` names.

    Raises:
        OptionError: there is no template with this name.
    """
    if name is None:
        generation = checkpoint.read_json("generation_config.json") or {}
        name = str(generation.get("chat_format", "chatml"))
    if name not in TEMPLATES:
        raise OptionError(
            f"Qwen-VL has no chat template {name!r}; it has {', '.join(sorted(TEMPLATES))}"
        )
    return TEMPLATES[name]

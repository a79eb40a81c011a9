"""``ChatTemplate``: a conversation in, prompt parts out.

A prompt is a sequence of parts. ``Text`` is what somebody wrote: it may hold anything and never
becomes a control token. ``Control`` is what the template wrote. An ``ImageSlot`` marks where the
rows of an image go. Slots and control tokens travel beside the text, not in it, so nothing that
a user types can turn into one.

Knows nothing of tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlcore.errors import PluginContractError, VlcoreError
from vlcore.prompts.messages import (
    Control,
    ImageSlot,
    Message,
    PromptPart,
    Rows,
    Text,
    parse_messages,
)
from vlcore.prompts.regions import Region


class ChatTemplate:
    """Base class of a plugin's chat template.

    A subclass writes :meth:`messages2prompt`. Most plugins build on :class:`RoleTemplate` or
    :class:`~vlcore.JinjaTemplate` instead and state only how images are placed.
    """

    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    restarts_after_image: bool = True
    """Text after an image is tokenised like text at the beginning, as the code does that splits a
    prompt at its images; ``False`` where the image is a token in the midst of the text."""

    def append_image_token(self, prompt: str, num_images: int) -> tuple[PromptPart, ...]:
        """Place images that were given beside a prompt; slots are numbered from 0."""
        parts: list[PromptPart] = []
        for index in range(num_images):
            parts += (ImageSlot(index), Control("\n"))
        return (*parts, Text(prompt))

    def messages2prompt(
        self, messages: Sequence[Message | Mapping[str, Any]]
    ) -> tuple[PromptPart, ...]:
        """Turn a conversation into the parts that ask for its next answer.

        Raises:
            PromptError: the conversation cannot be read or does not suit the template.
        """
        raise NotImplementedError(f"{type(self).__name__} must define messages2prompt")

    def expand(self, layout: Any, num_rows: int) -> tuple[Text | Control | Rows, ...]:  # noqa: ARG002
        """Give what stands in an image's slot: runs of its rows and any tokens between them.

        Args:
            layout: what the vision model said of the image's layout.
            num_rows: how many rows it has; the runs' lengths must sum to it.
        """
        return (Rows(num_rows),)

    def render(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        image_token: str = "<image>",  # noqa: S107  (no password)
    ) -> str:
        """Give the prompt as people read it, with ``image_token`` where an image goes."""
        return "".join(
            image_token if isinstance(part, ImageSlot) else part.text
            for part in self.messages2prompt(messages)
        )

    @property
    def finds_regions(self) -> bool:
        """Whether answers can point at regions of a picture, which :meth:`regions` then finds."""
        return type(self).regions is not ChatTemplate.regions

    def regions(self, answer: str, size: tuple[int, int]) -> tuple[Region, ...]:
        """Find the regions that an answer points at. Optional; what is malformed is just text.

        Args:
            answer: the text of an answer.
            size: the picture's width and height.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say how answers point at regions"
        )


def write_prompt(
    template: ChatTemplate, messages: Sequence[Message | Mapping[str, Any]]
) -> tuple[PromptPart, ...]:
    """Have a plugin's template write a conversation.

    Raises:
        PromptError: the conversation does not suit the template.
        PluginContractError: the template fails.
    """
    try:
        return tuple(template.messages2prompt(messages))
    except VlcoreError:
        raise
    except Exception as error:
        raise PluginContractError(
            f"{type(template).__name__}.messages2prompt failed: {type(error).__name__}: {error}"
        ) from error


@dataclass(frozen=True)
class RoleTemplate(ChatTemplate):
    """A template that puts fixed text around each role's messages.

    A conversation reads: system, then for each turn ``user_prefix`` question ``user_suffix``
    ``assistant_prefix``, and for each answer that is already there ``answer_prefix`` answer
    ``answer_suffix``.
    """

    user_prefix: str
    user_suffix: str
    assistant_prefix: str
    answer_prefix: str = ""
    answer_suffix: str = ""
    system: str = ""
    """System text where the conversation brings none; empty for none at all."""
    system_prefix: str = ""
    system_suffix: str = ""
    system_inside_first_turn: bool = False
    """The system text stands after the first ``user_prefix`` instead of before it."""
    image_prefix: str = ""
    """``{number}`` in it becomes the image's number in its message, from 1."""
    image_suffix: str = "\n"
    stop: tuple[str, ...] = ()
    restarts_after_image: bool = True

    def append_image_token(self, prompt: str, num_images: int) -> tuple[PromptPart, ...]:
        """Place images before the text, each between ``image_prefix`` and ``image_suffix``."""
        slots = [
            part
            for index in range(num_images)
            for part in self._around(ImageSlot(index), index + 1)
        ]
        return (*slots, Text(prompt))

    def answer2parts(self, answer: str) -> tuple[PromptPart, ...]:
        """Turn an earlier answer into parts; override where answers hold tokens of their own."""
        return (Text(answer),)

    def messages2prompt(
        self, messages: Sequence[Message | Mapping[str, Any]]
    ) -> tuple[PromptPart, ...]:
        """Turn a conversation into the parts that ask for its next answer."""
        conversation = parse_messages(messages)
        system = self.system
        if conversation[0].role == "system":
            system = conversation[0].text
            conversation = conversation[1:]
        header: list[PromptPart] = []
        if system:
            header = [Control(self.system_prefix), Text(system), Control(self.system_suffix)]
        parts: list[PromptPart] = [] if self.system_inside_first_turn else header
        for position, message in enumerate(conversation):
            if message.role == "user":
                parts.append(Control(self.user_prefix))
                if position == 0 and self.system_inside_first_turn:
                    parts += header
                parts += self._user_content(message)
                parts.append(Control(self.user_suffix + self.assistant_prefix))
            else:
                parts += (
                    Control(self.answer_prefix),
                    *self.answer2parts(message.text),
                    Control(self.answer_suffix),
                )
        return tuple(part for part in parts if isinstance(part, ImageSlot) or part.text)

    def _user_content(self, message: Message) -> Iterable[PromptPart]:
        slots = [part for part in message.content if isinstance(part, ImageSlot)]
        if message.content[: len(slots)] == tuple(slots):
            numbered = self.append_image_token(message.text, len(slots))
            return [slots[part.index] if isinstance(part, ImageSlot) else part for part in numbered]
        parts: list[PromptPart] = []
        number = 0
        for part in message.content:
            if isinstance(part, ImageSlot):
                number += 1
                parts += self._around(part, number)
            else:
                separate = bool(parts) and isinstance(parts[-1], Text)
                parts.append(replace(part, text="\n" + part.text) if separate else part)
        return parts

    def _around(self, slot: ImageSlot, number: int) -> tuple[PromptPart, ...]:
        prefix = self.image_prefix.replace("{number}", str(number))
        return (Control(prefix), slot, Control(self.image_suffix))

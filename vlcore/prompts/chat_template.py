"""``ChatTemplate``: turns a conversation into the parts of a prompt.

A prompt is a sequence of parts. A ``Text`` was written by a user or by the model in an earlier
turn: it may contain anything and never becomes a special token. A ``Control`` was written by the
template. An ``ImageSlot`` marks where the embeddings of an image go. Because slots and template
text are separate parts, nothing that a user types can turn into an image or a special token.

This module does not know about tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from typing import Any

from vlcore.errors import PluginContractError, PromptError, VlcoreError
from vlcore.prompts.conversation import Conversation, read_conversation
from vlcore.prompts.messages import Control, ImageSlot, Message, PromptPart, Rows, Text
from vlcore.prompts.regions import Region


class ChatTemplate:
    """Base class of a plugin's chat template.

    A subclass implements :meth:`messages2prompt`. Most plugins use :class:`RoleTemplate` or
    :class:`~vlcore.JinjaTemplate` instead and define only how images are embedded in the text.
    """

    stop: tuple[str, ...] = ()
    """Stop strings: the answer ends where one of them is generated."""
    restarts_after_image: bool = True
    """Whether text after an image is tokenized like text at the beginning of a prompt. ``True``
    where the reference implementation splits the prompt at its images and tokenizes the parts one
    by one, ``False`` where it tokenizes the whole prompt with a token for each image."""
    adds_prefix: bool = True
    """Whether a prompt begins with the tokens that the tokenizer adds before every text, such as
    BOS, also where the template does not write them. ``False`` where the reference implementation
    tokenizes without ``add_special_tokens``."""

    response_template: Mapping[str, Any] | None = None
    """How answers call tools, in the format of transformers' ``response_template``. ``None`` where
    the template has no tools, or where their format is not known."""

    @property
    def supports_tools(self) -> bool:
        """Whether the template writes tools, their calls and their results."""
        return False

    def append_image_token(self, prompt: str, num_images: int) -> tuple[PromptPart, ...]:
        """Combine a prompt with images that come before it.

        Returns:
            The parts of the message, with the image slots numbered from 0.
        """
        parts: list[PromptPart] = []
        for index in range(num_images):
            parts += (ImageSlot(index), Control("\n"))
        return (*parts, Text(prompt))

    def messages2prompt(
        self, messages: Sequence[Message | Mapping[str, Any]]
    ) -> tuple[PromptPart, ...]:
        """Turn a conversation into the prompt that asks for its next answer.

        The answer continues the last message if that is one of the assistant; see
        :attr:`Conversation.continues_final_message`.

        Args:
            messages: A :class:`Conversation`, :class:`Message` values or OpenAI-style messages, as
                :func:`parse_messages` reads them.

        Raises:
            PromptError: The conversation cannot be read, or the template does not support it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define messages2prompt")

    def expand(self, layout: Any, num_rows: int) -> tuple[Text | Control | Rows, ...]:  # noqa: ARG002
        """Return the content of an image's slot: its embeddings and the tokens between them.

        An override may have a third argument, ``index: int = 0``, and then receives the index of
        the image in the conversation, from 0.

        Args:
            layout: Layout of the image, as the vision model returned it.
            num_rows: Number of the image's embeddings. The lengths of all ``Rows`` must sum to it.
        """
        return (Rows(num_rows),)

    def render(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        image_token: str = "<image>",  # noqa: S107  (no password)
    ) -> str:
        """Return the prompt as readable text, with ``image_token`` in place of each image."""
        return "".join(
            image_token if isinstance(part, ImageSlot) else part.text
            for part in self.messages2prompt(messages)
        )

    @property
    def finds_regions(self) -> bool:
        """Whether answers can refer to regions of an image, which :meth:`regions` then finds."""
        return type(self).regions is not ChatTemplate.regions

    def regions(self, answer: str, size: tuple[int, int]) -> tuple[Region, ...]:
        """Find the regions that an answer refers to. Optional.

        Malformed references are ordinary text, not errors.

        Args:
            answer: Text of an answer.
            size: Width and height of the image, in pixels.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not implement regions: the answers of its model cannot "
            "refer to regions of an image"
        )


def write_prompt(
    template: ChatTemplate, messages: Sequence[Message | Mapping[str, Any]]
) -> tuple[PromptPart, ...]:
    """Turn a conversation into a prompt with a plugin's template.

    Raises:
        PromptError: The template does not support the conversation.
        PluginContractError: The template raised an exception that is not one of vlcore.
    """
    if isinstance(messages, Conversation):
        _check_tools(template, messages)
    try:
        return tuple(template.messages2prompt(messages))
    except VlcoreError:
        raise
    except Exception as error:
        raise PluginContractError(
            f"{type(template).__name__}.messages2prompt failed: {type(error).__name__}: {error}"
        ) from error


def expand_slot(
    template: ChatTemplate, slot: ImageSlot, layout: Any, num_rows: int
) -> tuple[Text | Control | Rows, ...]:
    """Return the content of an image's slot, as :meth:`ChatTemplate.expand` does."""
    if _takes_index(type(template).expand):
        return template.expand(layout, num_rows, index=slot.index)  # type: ignore[call-arg]
    return template.expand(layout, num_rows)


@cache
def _takes_index(expand: Callable[..., object]) -> bool:
    return "index" in signature(expand).parameters


def _check_tools(template: ChatTemplate, conversation: Conversation) -> None:
    """Check that a template supports the tools of a conversation, if there are some.

    Raises:
        PromptError: It does not.
    """
    if conversation.uses_tools and not template.supports_tools:
        raise PromptError(
            "the conversation has tools or calls of tools, and the model's chat template does not "
            "support them: leave them out, or use a model whose template does"
        )


@dataclass(frozen=True)
class RoleTemplate(ChatTemplate):
    """A template that surrounds the messages of each role with fixed text.

    A prompt consists of the system text; for each message of the user ``user_prefix``, the message,
    ``user_suffix`` and ``assistant_prefix``; and for each earlier answer ``answer_prefix``, the
    answer and ``answer_suffix``. A conversation that begins with an answer has
    ``assistant_prefix`` before it. The prompt ends after the answer that is to be continued.
    """

    user_prefix: str
    user_suffix: str
    assistant_prefix: str
    answer_prefix: str = ""
    answer_suffix: str = ""
    system: str = ""
    """System text for conversations without a system message; empty for none."""
    system_prefix: str = ""
    system_suffix: str = ""
    system_inside_first_turn: bool = False
    """Whether the system text comes after the first ``user_prefix`` instead of before it."""
    image_prefix: str = ""
    """Text before each image; ``{number}`` in it is the image's number in its message, from 1."""
    image_suffix: str = "\n"
    stop: tuple[str, ...] = ()
    restarts_after_image: bool = True
    adds_prefix: bool = True

    def append_image_token(self, prompt: str, num_images: int) -> tuple[PromptPart, ...]:
        """Put images before a prompt, each between ``image_prefix`` and ``image_suffix``."""
        slots = [
            part
            for index in range(num_images)
            for part in self._around(ImageSlot(index), index + 1)
        ]
        return (*slots, Text(prompt))

    def answer2parts(self, answer: str) -> tuple[PromptPart, ...]:
        """Turn an earlier answer into parts.

        Override this method where answers contain special tokens that must remain tokens.
        """
        return (Text(answer),)

    def messages2prompt(
        self, messages: Sequence[Message | Mapping[str, Any]]
    ) -> tuple[PromptPart, ...]:
        """Turn a conversation into the prompt that asks for its next answer."""
        conversation = read_conversation(messages)
        _check_tools(self, conversation)
        parts: list[PromptPart] = []
        system, turns = self._system_parts(conversation)
        if not self.system_inside_first_turn:
            parts, system = system, []
        if turns[0].role == "assistant":
            if system:  # inside a turn of the user, which is empty
                parts += (Control(self.user_prefix), *system, Control(self.user_suffix))
            parts.append(Control(self.assistant_prefix))
        for position, message in enumerate(turns):
            if message.role == "user":
                parts.append(Control(self.user_prefix))
                if position == 0:
                    parts += system
                parts += self._user_content(message)
                parts.append(Control(self.user_suffix + self.assistant_prefix))
            elif position < len(turns) - 1 or not conversation.continues_final_message:
                parts += (*self._answer_parts(message), Control(self.answer_suffix))
            elif message.text:
                parts += self._answer_parts(message)
        if turns[-1].role == "assistant" and not conversation.continues_final_message:
            parts.append(Control(self.assistant_prefix))
        return tuple(part for part in parts if isinstance(part, ImageSlot) or part.text)

    def _system_parts(
        self, conversation: Conversation
    ) -> tuple[list[PromptPart], tuple[Message, ...]]:
        """Return the system text with its prefix and suffix, and the other messages."""
        text, turns = self.system, conversation.messages
        if turns[0].role == "system":
            text, turns = turns[0].text, turns[1:]
        if not text:
            return [], turns
        return [Control(self.system_prefix), Text(text), Control(self.system_suffix)], turns

    def _answer_parts(self, message: Message) -> tuple[PromptPart, ...]:
        return (Control(self.answer_prefix), *self.answer2parts(message.text))

    def _user_content(self, message: Message) -> Iterable[PromptPart]:
        slots = message.slots
        if message.content[: len(slots)] == slots:
            numbered = self.append_image_token(message.text, len(slots))
            return [slots[part.index] if isinstance(part, ImageSlot) else part for part in numbered]
        parts: list[PromptPart] = []
        number = 0
        for part in message.content:
            if isinstance(part, ImageSlot):
                number += 1
                parts += self._around(part, number)
            else:
                follows_text = bool(parts) and isinstance(parts[-1], Text)
                parts.append(replace(part, text="\n" + part.text) if follows_text else part)
        return parts

    def _around(self, slot: ImageSlot, number: int) -> tuple[PromptPart, ...]:
        prefix = self.image_prefix.replace("{number}", str(number))
        return (Control(prefix), slot, Control(self.image_suffix))

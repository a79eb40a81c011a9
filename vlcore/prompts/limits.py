"""``PromptLimits``: the maximum length of a prompt, in addition to the engine's context length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from vlcore.errors import ContextLengthError, OptionError, PromptError
from vlcore.prompts.conversation import Conversation
from vlcore.prompts.messages import Message, Text


@dataclass(frozen=True)
class PromptLimits:
    """Limits of one prompt; ``None`` for no limit other than the engine's context length.

    Raises:
        OptionError: A limit is not a positive integer.
    """

    max_prompt_tokens: int | None = None
    """Maximum number of tokens, including one for each image embedding."""
    max_prompt_chars: int | None = None
    """Maximum number of characters in all texts and tools of the conversation, checked before
    they are tokenized."""

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_prompt_chars"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"{name} must be a positive integer or None; it is {value!r}")

    def check_chars(self, messages: Sequence[Message]) -> None:
        """Check the number of characters of a conversation.

        Raises:
            PromptError: The texts have more than ``max_prompt_chars`` characters.
        """
        if self.max_prompt_chars is None:
            return
        texts = (part for message in messages for part in message.content)
        num_chars = sum(len(part.text) for part in texts if isinstance(part, Text))
        calls = (call for message in messages for call in message.tool_calls)
        num_chars += sum(len(call.name) + len(call.arguments) for call in calls)
        if isinstance(messages, Conversation) and messages.tools:
            num_chars += len(json.dumps(messages.tools, ensure_ascii=False))
        if num_chars > self.max_prompt_chars:
            raise PromptError(
                f"the conversation's texts have {num_chars} characters, and max_prompt_chars "
                f"allows {self.max_prompt_chars}: shorten them"
            )

    def check_tokens(self, num_tokens: int) -> None:
        """Check the number of tokens of a prompt.

        Raises:
            ContextLengthError: The prompt has more than ``max_prompt_tokens`` tokens.
        """
        if self.max_prompt_tokens is not None and num_tokens > self.max_prompt_tokens:
            raise ContextLengthError(
                f"the prompt has {num_tokens} tokens and image embeddings, and max_prompt_tokens "
                f"allows {self.max_prompt_tokens}: shorten the text, or use fewer images"
            )

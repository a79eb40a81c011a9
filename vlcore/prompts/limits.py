"""How long a prompt may be, beside what the engine's context allows.

Knows nothing of tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlcore.errors import ContextLengthError, OptionError, PromptError
from vlcore.prompts.messages import Message, Text


@dataclass(frozen=True)
class PromptLimits:
    """Limits of one prompt; ``None`` leaves it to the engine's context.

    Raises:
        OptionError: a limit is no positive integer.
    """

    max_prompt_tokens: int | None = None
    """Tokens and image rows together."""
    max_prompt_chars: int | None = None
    """Characters of all texts of the conversation; checked before anything is tokenised."""

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_prompt_chars"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"{name} must be a positive integer or None; it is {value!r}")

    def check_chars(self, messages: Sequence[Message]) -> None:
        """Refuse a conversation whose texts are too long.

        Raises:
            PromptError: they have more than ``max_prompt_chars`` characters.
        """
        if self.max_prompt_chars is None:
            return
        texts = (part for message in messages for part in message.content)
        num_chars = sum(len(part.text) for part in texts if isinstance(part, Text))
        if num_chars > self.max_prompt_chars:
            raise PromptError(
                f"the conversation's texts have {num_chars} characters, and max_prompt_chars "
                f"allows {self.max_prompt_chars}: shorten them"
            )

    def check_tokens(self, num_tokens: int) -> None:
        """Refuse a prompt that is too long.

        Raises:
            ContextLengthError: it has more than ``max_prompt_tokens`` tokens and image rows.
        """
        if self.max_prompt_tokens is not None and num_tokens > self.max_prompt_tokens:
            raise ContextLengthError(
                f"the prompt has {num_tokens} tokens and image rows, and max_prompt_tokens allows "
                f"{self.max_prompt_tokens}: shorten the text, or give fewer images"
            )

from __future__ import annotations

from typing import Any

import pytest

from vlcore.errors import ContextLengthError, OptionError, PromptError
from vlcore.prompts.limits import PromptLimits
from vlcore.prompts.messages import ImageSlot, Message, Text

MESSAGES = (
    Message("system", (Text("four"),)),
    Message("user", (Text("three"), ImageSlot(0), Text("!"))),
)


def test_without_limits_any_prompt_is_accepted() -> None:
    PromptLimits().check_chars(MESSAGES)
    PromptLimits().check_tokens(10**9)


def test_characters_of_all_texts_count() -> None:
    PromptLimits(max_prompt_chars=10).check_chars(MESSAGES)
    with pytest.raises(PromptError, match="max_prompt_chars allows 9"):
        PromptLimits(max_prompt_chars=9).check_chars(MESSAGES)


def test_tokens_are_counted_up_to_the_limit() -> None:
    PromptLimits(max_prompt_tokens=5).check_tokens(5)
    with pytest.raises(ContextLengthError, match="max_prompt_tokens allows 5"):
        PromptLimits(max_prompt_tokens=5).check_tokens(6)


@pytest.mark.parametrize("name", ["max_prompt_tokens", "max_prompt_chars"])
@pytest.mark.parametrize("value", [0, -1, True, 1.0, "9"])
def test_an_invalid_limit_is_rejected(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{name} must be a positive integer or None; it is"):
        PromptLimits(**{name: value})

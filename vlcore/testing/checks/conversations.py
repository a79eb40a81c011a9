"""Checks of the chat template with conversations in the forms in which clients send them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlcore.errors import PromptError
from vlcore.prompts.chat_template import write_prompt
from vlcore.prompts.conversation import Conversation, read_conversation
from vlcore.prompts.messages import ImageSlot, Message
from vlcore.testing.check import check
from vlcore.testing.report import fail
from vlcore.testing.subject import Subject

_QUESTION = "Which of these two colours is warmer?"
_BEGINNING = "The warmer one of the two is"


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


@check("continued-answer", "a last message of the assistant is continued, or answered if required")
def continued_answer(subject: Subject) -> None:
    """End a conversation with the beginning of an answer."""
    conversation = read_conversation(
        [_message("user", _QUESTION), _message("assistant", _BEGINNING)]
    )
    where = f"messages2prompt of {type(subject.template).__name__}, an answer that has begun"
    try:
        continued = _prompt(subject, conversation)
    except PromptError:  # the template cannot be continued, which is an error
        continued = _BEGINNING
    if not continued.endswith(_BEGINNING):
        fail(
            expected=f"a prompt that ends with {_BEGINNING!r}",
            actual=repr(continued[-200:]),
            where=where,
            advice="write nothing after the last message if Conversation.continues_final_message",
        )
    answered = _prompt(subject, replace(conversation, continue_final_message=False))
    if _BEGINNING not in answered or answered.endswith(_BEGINNING):
        fail(
            expected=f"{_BEGINNING!r}, the end of the answer, and the beginning of a new one",
            actual=repr(answered[-200:]),
            where=f"{where}, with continue_final_message=False",
            advice="end the last message unless Conversation.continues_final_message",
        )


@check("joined-messages", "consecutive messages of one role are written as one message")
def joined_messages(subject: Subject) -> None:
    """Compare the prompts of messages and of the conversation that vlcore reads from them."""
    conversations = {
        "two messages of the user": [_message("user", "Look."), _message("user", _QUESTION)],
        "two system messages": [
            _message("system", "Be kind."),
            _message("system", "Be brief."),
            _message("user", _QUESTION),
        ],
        "a conversation that begins with the assistant": [
            _message("system", "Be kind."),
            _message("assistant", "How can I help?"),
            _message("user", _QUESTION),
        ],
    }
    for name, messages in conversations.items():
        where = f"messages2prompt of {type(subject.template).__name__}, {name}"
        try:
            prompt = _prompt(subject, messages)
            expected = _prompt(subject, read_conversation(messages))
        except PromptError:  # a template may support no such conversation
            continue
        if prompt != expected:
            fail(
                expected=repr(expected)[:400],
                actual=repr(prompt)[:400],
                where=where,
                advice="read the messages with vlcore.parse_messages, which joins them",
            )
        missing = [said["content"] for said in messages if said["content"] not in prompt]
        if missing:
            fail(
                expected=f"the text {missing[0]!r}",
                actual=repr(prompt)[:400],
                where=where,
                advice="write every message, or raise vlcore.PromptError",
            )


def _prompt(
    subject: Subject, messages: Sequence[Message | Mapping[str, Any]] | Conversation
) -> str:
    parts = write_prompt(subject.template, messages)
    return "".join("<image>" if isinstance(part, ImageSlot) else part.text for part in parts)

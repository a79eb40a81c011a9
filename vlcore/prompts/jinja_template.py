"""``JinjaTemplate``: the Jinja chat template of a checkpoint, rendered in a sandbox.

The template is rendered with placeholders instead of the texts and images of the conversation.
Everything that it writes around the placeholders is text of the template. The placeholders are
replaced by texts and image slots afterwards, so that ``<image>`` or ``</s>`` typed by a user
remains text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from typing import Any, cast

from vlcore.errors import PromptError
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.prompts.conversation import read_conversation
from vlcore.prompts.messages import Control, ImageSlot, Message, PromptPart, Text
from vlcore.prompts.tools import HERMES_FORMAT, map_texts

_PROBE = "7f4c2e9a1b"
"""Text that is looked for in a rendered probe. Case changes by the template do not matter."""
_ESCAPED_PROBE = re.compile(rf"""["']text["']\s*:\s*["']{_PROBE}""", re.IGNORECASE)
"""The text within a part that was written as a whole, as Python or JSON."""


class JinjaTemplate(ChatTemplate):
    """A Hugging Face chat template.

    Args:
        source: Jinja source of the template.
        image_token: Text that the template writes for an image.
        video_token: Text that the template writes for a video; ``None`` where it writes none.
        stop: Stop strings: the answer ends where one of them is generated.
        variables: Further variables of the template, such as ``bos_token``.
        adds_prefix: As for :attr:`ChatTemplate.adds_prefix`.
        response_template: How answers call tools; by default, the format of Hermes if the template
            writes its ``<tool_call>`` tag.
    """

    restarts_after_image = False

    def __init__(
        self,
        source: str,
        *,
        image_token: str = "<image>",  # noqa: S107  (no password)
        video_token: str | None = None,
        stop: tuple[str, ...] = (),
        variables: Mapping[str, Any] | None = None,
        adds_prefix: bool = True,
        response_template: Mapping[str, Any] | None = None,
    ) -> None:
        self.source = source
        self.image_token = image_token
        self.video_token = video_token
        self.stop = stop
        self.variables = dict(variables or {})
        self.adds_prefix = adds_prefix
        if response_template is None and "<tool_call>" in source:
            response_template = HERMES_FORMAT
        self.response_template = response_template

    def messages2prompt(
        self, messages: Sequence[Message | Mapping[str, Any]]
    ) -> tuple[PromptPart, ...]:
        """Turn a conversation into the prompt that asks for its next answer.

        Raises:
            PromptError: The template rejects the conversation, omits a text, omits or repeats an
                image or a video, or omits the message to continue.
        """
        conversation = read_conversation(messages)
        turns = conversation.messages
        is_continued = conversation.continues_final_message
        if is_continued and not turns[-1].text.strip():
            is_continued, turns = False, turns[:-1]
        secret = secrets.token_hex(8)
        texts = _PlaceholderTexts(secret)
        tools = map_texts(conversation.tools, texts.add_json)
        with_placeholders = [self._insert_placeholders(turn, secret, texts) for turn in turns]
        try:
            prompt = self._render(
                with_placeholders, add_generation_prompt=not is_continued, tools=tools
            )
        except Exception as error:  # a template is a program and can raise anything
            raise PromptError(
                f"the checkpoint's chat template rejected the conversation: {error}"
            ) from error
        if is_continued:
            prompt = _cut_after(prompt, f"{secret}:{texts.required[-1]};", turns[-1].text)
        return self._resolve_placeholders(prompt, secret, texts, conversation.slots)

    def _render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered = render_jinja_template(
            conversations=[messages],
            chat_template=self.source,
            add_generation_prompt=add_generation_prompt,
            tools=[dict(tool) for tool in tools] or None,
            **self.variables,
        )
        # In spite of its annotation, it returns the prompts and the spans of generation blocks.
        return cast("str", cast("Any", rendered)[0][0])

    @cached_property
    def supports_tools(self) -> bool:
        """Whether the template writes the tools of a conversation."""
        tool = {
            "type": "function",
            "function": {
                "name": _PROBE,
                "description": "Hello",
                "parameters": {"type": "object", "properties": {}},
            },
        }
        content = [{"type": "text", "text": "Hello"}] if "user" in self._part_roles else "Hello"
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        try:
            return _PROBE in self._render(messages, add_generation_prompt=True, tools=[tool])
        except Exception:  # the template raises for tools
            return False

    @property
    def omits_user_text(self) -> bool:
        """Whether the template renders a message of the user without its text."""
        return "user" in self._roles[1]

    @property
    def _part_roles(self) -> frozenset[str]:
        """Roles whose messages the template reads as lists of parts, and not as strings."""
        return self._roles[0]

    @cached_property
    def _roles(self) -> tuple[frozenset[str], frozenset[str]]:
        """The roles whose messages the template reads as lists of parts, and those that it omits.

        A template may read parts, strings or both, and differ between roles. Short conversations
        are rendered in both forms, to see in which one the text of a role arrives in the prompt.
        """
        part_roles: set[str] = set()
        omitted_roles: set[str] = set()
        for role, before, after in (
            ("user", (), ()),
            ("assistant", ("user",), ("user",)),
            ("system", (), ("user",)),
        ):
            texts = [(other, "Hello") for other in before]
            texts += [(role, _PROBE), *((other, "Hello") for other in after)]
            as_parts = self._arrival(texts, part_roles | {role})
            as_string = self._arrival(texts, part_roles)
            if as_parts >= as_string:
                part_roles.add(role)
            if max(as_parts, as_string) == 0:
                omitted_roles.add(role)
        return frozenset(part_roles), frozenset(omitted_roles)

    def _arrival(self, texts: Sequence[tuple[str, str]], part_roles: Set[str]) -> int:
        """Render a conversation that contains the probe.

        Returns:
            2 if the probe is in the prompt, 1 if only as part of a dictionary, 0 if it is not, and
            -1 if the template raises an error.
        """
        messages = [
            {
                "role": role,
                "content": [{"type": "text", "text": text}] if role in part_roles else text,
            }
            for role, text in texts
        ]
        try:
            prompt = self._render(messages, add_generation_prompt=True)
        except Exception:  # the template cannot read this form, or does not support the role
            return -1
        if _PROBE not in prompt.lower():
            return 0
        return 1 if _ESCAPED_PROBE.search(prompt) else 2

    def _insert_placeholders(
        self, message: Message, secret: str, texts: _PlaceholderTexts
    ) -> dict[str, Any]:
        parts: list[dict[str, str]] = []
        for part in message.content:
            if isinstance(part, ImageSlot):
                parts.append({"type": part.kind})
                continue
            # Templates may strip texts: keep the white space outside the placeholder.
            core = part.text.strip()
            if not core:
                parts.append({"type": "text", "text": part.text})
                continue
            before, _, after = part.text.partition(core)
            parts.append({"type": "text", "text": f"{before}{texts.add(core)}{after}"})
        values: dict[str, Any] = {"role": message.role, "content": parts}
        if message.role not in self._part_roles:
            values["content"] = "\n".join(
                part.get("text", f"{secret}:{part['type']};") for part in parts
            )
        if message.tool_call_id:
            values["tool_call_id"] = texts.add_json(message.tool_call_id)
        if message.tool_calls:
            values["tool_calls"] = [
                {
                    "type": "function",
                    "id": texts.add_json(call.id),
                    "function": {
                        "name": texts.add_json(call.name),
                        "arguments": map_texts(json.loads(call.arguments), texts.add_json),
                    },
                }
                for call in message.tool_calls
            ]
        return values

    def _resolve_placeholders(
        self, rendered: str, secret: str, texts: _PlaceholderTexts, slots: Sequence[ImageSlot]
    ) -> tuple[PromptPart, ...]:
        tokens = {"image": self.image_token, "video": self.video_token}
        waiting = {kind: [slot for slot in slots if slot.kind == kind] for kind in tokens}
        _check_kinds(tokens, waiting)
        pattern = _placeholder_pattern(secret, tokens)
        parts: list[PromptPart] = []
        omitted = set(texts.required)
        num_written = Counter[str]()
        end = 0
        for match in pattern.finditer(rendered):
            if match.start() > end:
                parts.append(Control(rendered[end : match.start()]))
            if match["text"] is not None:
                parts.append(Text(texts[int(match["text"])]))
                omitted.discard(int(match["text"]))
            else:
                kind = "image" if match["image"] is not None else "video"
                parts += waiting[kind][num_written[kind] :][:1]
                num_written[kind] += 1
            end = match.end()
        if end < len(rendered):
            parts.append(Control(rendered[end:]))
        if any(isinstance(part, Control) and secret in part.text.lower() for part in parts):
            raise PromptError(
                "the checkpoint's chat template changes the texts of the conversation (such as "
                "their letter case), which is not supported: choose another template"
            )
        for kind, expected in waiting.items():
            if num_written[kind] != len(expected):
                raise PromptError(
                    f"the conversation has {len(expected)} {kind}(s), and the checkpoint's chat "
                    f"template wrote {tokens[kind]!r} {num_written[kind]} time(s)"
                )
        if omitted:
            raise PromptError(
                "the checkpoint's chat template omits a text of the conversation, "
                f"{texts[min(omitted)]!r:.80}: choose another template, or leave the text out"
            )
        return tuple(parts)


def _check_kinds(
    tokens: Mapping[str, str | None], slots: Mapping[str, Sequence[ImageSlot]]
) -> None:
    for kind, token in tokens.items():
        if slots[kind] and token is None:
            raise PromptError(
                f"the conversation has a {kind}, and the model's chat template has no {kind}s: "
                "choose a model that takes them"
            )


def _placeholder_pattern(secret: str, tokens: Mapping[str, str | None]) -> re.Pattern[str]:
    """Return a pattern of all placeholders, with a group for each kind of slot."""
    kinds = [
        f"(?P<{kind}>{secret}:{kind};{f'|{re.escape(token)}' if token else ''})"
        for kind, token in sorted(tokens.items(), key=lambda item: -len(item[1] or ""))
    ]
    return re.compile("|".join((f"{secret}:(?P<text>[0-9]+);", *kinds)))


class _PlaceholderTexts:
    """The texts that placeholders of a prompt are replaced by.

    Args:
        secret: The beginning of every placeholder.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._texts: list[str] = []
        self.required: list[int] = []
        """Indexes of the texts that the template must write."""

    def __getitem__(self, index: int) -> str:
        return self._texts[index]

    def add(self, text: str) -> str:
        """Return a placeholder for a text of a message."""
        self.required.append(len(self._texts))
        self._texts.append(text)
        return f"{self._secret}:{self.required[-1]};"

    def add_json(self, text: str) -> str:
        """Return a placeholder for a text within JSON, which the template may leave out."""
        if not text:
            return text
        self._texts.append(json.dumps(text, ensure_ascii=False)[1:-1])
        return f"{self._secret}:{len(self._texts) - 1};"


def _cut_after(prompt: str, placeholder: str, text: str) -> str:
    """Remove what the template writes after the text of the message to continue.

    Raises:
        PromptError: The template omits the message.
    """
    start = prompt.rfind(placeholder)
    if start < 0:
        raise PromptError(
            "the checkpoint's chat template does not write the last message of the assistant "
            "unchanged, so that it cannot be continued: end the conversation with a message of the "
            "user"
        )
    end = start + len(placeholder)
    white_space = text[len(text.rstrip()) :]
    return prompt[: end + len(white_space)] if prompt.startswith(white_space, end) else prompt[:end]

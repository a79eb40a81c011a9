"""``JinjaTemplate``: the Jinja chat template of a checkpoint, rendered in a sandbox.

The template is rendered with placeholders instead of the texts and images of the conversation.
Everything that it writes around the placeholders is text of the template. The placeholders are
replaced by texts and image slots afterwards, so that ``<image>`` or ``</s>`` typed by a user
remains text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, cast

from vlcore.errors import PromptError
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.prompts.messages import Control, ImageSlot, Message, PromptPart, Text, read_conversation

# Templates for text alone expect content as a string; those for images go through its parts.
_READS_PARTS = re.compile(r"""for\s+\w+\s+in\s+\w+(\.content|\[['"]content['"]\])""")


class JinjaTemplate(ChatTemplate):
    """A Hugging Face chat template.

    Args:
        source: Jinja source of the template.
        image_token: Text that the template writes for an image.
        stop: Stop strings: the answer ends where one of them is generated.
        variables: Further variables of the template, such as ``bos_token``.
    """

    restarts_after_image = False

    def __init__(
        self,
        source: str,
        *,
        image_token: str = "<image>",  # noqa: S107  (no password)
        stop: tuple[str, ...] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.source = source
        self.image_token = image_token
        self.stop = stop
        self.variables = dict(variables or {})

    def messages2prompt(
        self, messages: Sequence[Message | Mapping[str, Any]]
    ) -> tuple[PromptPart, ...]:
        """Turn a conversation into the prompt that asks for its next answer.

        Raises:
            PromptError: The template rejects the conversation, or omits or repeats an image.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        conversation = read_conversation(messages)
        secret = secrets.token_hex(8)
        texts: list[str] = []
        with_placeholders = [
            self._insert_placeholders(message, secret, texts) for message in conversation
        ]
        try:
            rendered = render_jinja_template(
                conversations=[with_placeholders],
                chat_template=self.source,
                add_generation_prompt=True,
                **self.variables,
            )
        except Exception as error:  # a template is a program and can raise anything
            raise PromptError(
                f"the checkpoint's chat template rejected the conversation: {error}"
            ) from error
        slots = [slot for message in conversation for slot in message.slots]
        # In spite of its annotation, it returns the prompts and the spans of generation blocks.
        prompt = cast("Any", rendered)[0][0]
        return self._resolve_placeholders(prompt, secret, texts, slots)

    def _insert_placeholders(
        self, message: Message, secret: str, texts: list[str]
    ) -> dict[str, Any]:
        content: list[dict[str, str]] = []
        for part in message.content:
            if isinstance(part, ImageSlot):
                content.append({"type": "image"})
                continue
            # Templates may strip texts: keep the white space outside the placeholder.
            core = part.text.strip()
            if not core:
                content.append({"type": "text", "text": part.text})
                continue
            before, _, after = part.text.partition(core)
            content.append({"type": "text", "text": f"{before}{secret}:{len(texts)};{after}"})
            texts.append(core)
        if _READS_PARTS.search(self.source):
            return {"role": message.role, "content": content}
        image = f"{secret}:image;"
        return {
            "role": message.role,
            "content": "\n".join(part.get("text", image) for part in content),
        }

    def _resolve_placeholders(
        self, rendered: str, secret: str, texts: Sequence[str], slots: Sequence[ImageSlot]
    ) -> tuple[PromptPart, ...]:
        pattern = re.compile(
            f"{secret}:(?P<text>[0-9]+);|{secret}:image;|{re.escape(self.image_token)}"
        )
        parts: list[PromptPart] = []
        num_images = 0
        end = 0
        for match in pattern.finditer(rendered):
            if match.start() > end:
                parts.append(Control(rendered[end : match.start()]))
            if match["text"] is not None:
                parts.append(Text(texts[int(match["text"])]))
            else:
                if num_images < len(slots):
                    parts.append(slots[num_images])
                num_images += 1
            end = match.end()
        if end < len(rendered):
            parts.append(Control(rendered[end:]))
        if any(isinstance(part, Control) and secret in part.text.lower() for part in parts):
            raise PromptError(
                "the checkpoint's chat template changes the texts of the conversation (such as "
                "their letter case), which is not supported: choose another template"
            )
        if num_images != len(slots):
            raise PromptError(
                f"the conversation has {len(slots)} image(s), and the checkpoint's chat template "
                f"wrote {self.image_token!r} {num_images} time(s)"
            )
        return tuple(parts)

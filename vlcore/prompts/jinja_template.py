"""``JinjaTemplate``: the chat template that a checkpoint ships, run in a sandbox.

The template sees marks in place of what people wrote. Whatever text it puts around the marks is
the template's own; the marks turn back into text and image slots afterwards, so that a user who
types ``<image>`` or ``</s>`` has typed just that.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, cast

from vlcore.errors import PromptError
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.prompts.messages import Control, ImageSlot, Message, PromptPart, Text, parse_messages

# Templates for text alone expect content as a string; those for images go through its parts.
_READS_PARTS = re.compile(r"""for\s+\w+\s+in\s+\w+(\.content|\[['"]content['"]\])""")


class JinjaTemplate(ChatTemplate):
    """A Hugging Face chat template.

    Args:
        source: the Jinja source.
        image_token: the text that the template writes where an image goes.
        stop: texts that end an answer.
        variables: what else the template may use, such as ``bos_token``.
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
        """Turn a conversation into the parts that ask for its next answer.

        Raises:
            PromptError: the template refuses the conversation, or drops or repeats an image.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        conversation = parse_messages(messages)
        secret = secrets.token_hex(8)
        texts: list[str] = []
        marked = [self._mark(message, secret, texts) for message in conversation]
        try:
            rendered = render_jinja_template(
                conversations=[marked],
                chat_template=self.source,
                add_generation_prompt=True,
                **self.variables,
            )
        except Exception as error:  # the template is a program, and can fail like any
            raise PromptError(
                f"the checkpoint's chat template refused the conversation: {error}"
            ) from error
        slots = [part for message in conversation for part in message.content]
        # Despite its annotation it gives a pair: the prompts and the spans of generation blocks.
        prompt = cast("Any", rendered)[0][0]
        return self._unmark(
            prompt, secret, texts, [part for part in slots if isinstance(part, ImageSlot)]
        )

    def _mark(self, message: Message, secret: str, texts: list[str]) -> dict[str, Any]:
        content: list[dict[str, str]] = []
        for part in message.content:
            if isinstance(part, ImageSlot):
                content.append({"type": "image"})
                continue
            # The template may strip what it is given: leave white space for it to strip.
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

    def _unmark(
        self, rendered: str, secret: str, texts: Sequence[str], slots: Sequence[ImageSlot]
    ) -> tuple[PromptPart, ...]:
        pattern = re.compile(
            f"{secret}:(?P<text>[0-9]+);|{secret}:image;|{re.escape(self.image_token)}"
        )
        parts: list[PromptPart] = []
        num_images = 0
        end = 0
        for found in pattern.finditer(rendered):
            if found.start() > end:
                parts.append(Control(rendered[end : found.start()]))
            if found["text"] is not None:
                parts.append(Text(texts[int(found["text"])]))
            else:
                if num_images < len(slots):
                    parts.append(slots[num_images])
                num_images += 1
            end = found.end()
        if end < len(rendered):
            parts.append(Control(rendered[end:]))
        if any(isinstance(part, Control) and secret in part.text.lower() for part in parts):
            raise PromptError(
                "the checkpoint's chat template rewrites what people wrote (such as its letter "
                "case), which vlcore does not follow: choose another template"
            )
        if num_images != len(slots):
            raise PromptError(
                f"the conversation holds {len(slots)} image(s) and the checkpoint's chat template "
                f"wrote {self.image_token!r} {num_images} time(s)"
            )
        return tuple(parts)

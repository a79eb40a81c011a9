"""Checks of the chat template: a conversation in, prompt parts and tokens out."""

from __future__ import annotations

import importlib
import inspect
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vlcore.errors import OptionError, PromptError
from vlcore.prompts.chat_template import expand_slot, write_prompt
from vlcore.prompts.messages import Control, ImageSlot, PromptPart, Rows, Text
from vlcore.prompts.tokenization import ImageLayout, TokenizedPrompt
from vlcore.testing.check import check
from vlcore.testing.report import DoesNotApplyError, NotRunError, fail
from vlcore.testing.samples import plain_images
from vlcore.testing.subject import Subject
from vlcore.vision.model import ImageInputs

_Conversation = Sequence[Mapping[str, Any]]

_HARMLESS = "Which of these two colours is warmer?"
_MARKS = (
    "<image> <image_1> <|image|> <image_soft_token> [IMG] <img></img> {number} {{ 7 * 7 }} {% if %}"
)
_MAX_SPECIAL_TOKENS = 300
_NO_TEMPLATE = "no-such-template"


def _message(role: str, *content: str | None) -> dict[str, Any]:
    """Write a message; ``None`` is an image."""
    parts = [
        {"type": "image"} if part is None else {"type": "text", "text": part} for part in content
    ]
    return {"role": role, "content": parts}


@check("template-loads", "vl_chat_template returns a ChatTemplate")
def template_loads(subject: Subject) -> None:
    """Load the chat template."""
    subject.load("template")


@check("template-name", "an unknown template name is an OptionError")
def template_name(subject: Subject) -> None:
    """Request a name that does not exist."""
    stages = subject.stages()
    hook = getattr(importlib.import_module(subject.module_name), "vl_chat_template", None)
    if hook is not None and "name" not in inspect.signature(hook).parameters:
        raise DoesNotApplyError("vl_chat_template takes no name: there is one template")
    try:
        template = stages.chat_template(_NO_TEMPLATE)
    except OptionError:
        return
    fail(
        expected="an OptionError that lists the known names",
        actual=f"a {type(template).__name__}",
        where=f"vl_chat_template with the name {_NO_TEMPLATE!r}",
        advice="raise vlcore.OptionError for an unknown name, or leave the argument out",
    )


@check("one-slot-per-image", "every image has exactly one slot, wherever it is in the messages")
def one_slot_per_image(subject: Subject) -> None:
    """Place images before, after and between texts, in one turn and in several."""
    template = subject.template
    conversations: dict[str, _Conversation] = {
        "no image": [_message("user", "Hello")],
        "an image before the text": [_message("user", None, "What is this?")],
        "an image after the text": [_message("user", "What is this?", None)],
        "two images": [_message("user", None, None, "Compare these.")],
        "images between texts": [_message("user", "This", None, "or that", None, "?")],
        "images in two turns": [
            _message("user", None, "What is this?"),
            _message("assistant", "A dog."),
            _message("user", None, "And this?"),
        ],
    }
    for name, messages in conversations.items():
        count = sum(part["type"] == "image" for said in messages for part in said["content"])
        try:
            parts = template.messages2prompt(messages)
        except PromptError:
            if count > 1:  # a model may accept only one image
                continue
            raise
        _expect_slots(parts, count, f"messages2prompt of {type(template).__name__}, {name}")
    for count in range(4):
        parts = template.append_image_token(_HARMLESS, count)
        where = f"append_image_token of {type(template).__name__}, {count} images"
        _expect_slots(parts, count, where)
        if _HARMLESS not in _text_of(parts):
            fail(
                expected=f"the text {_HARMLESS!r}",
                actual=repr(_text_of(parts)),
                where=where,
                advice="return the text as a Text next to the slots",
            )


def _expect_slots(parts: Sequence[PromptPart], count: int, where: str) -> None:
    slots = [part.index for part in parts if isinstance(part, ImageSlot)]
    if slots != list(range(count)):
        fail(
            expected=f"one slot for each of {count} image(s), in order: {list(range(count))}",
            actual=f"slots {slots}",
            where=where,
            advice="pass on every ImageSlot of the messages, once",
        )


@check("spans-sum", "the rows that expand places, and the prompt's spans, sum to each image's rows")
def spans_sum(subject: Subject) -> None:
    """Expand the slots of real images, by the layouts of preprocess and of forward."""
    template, name = subject.template, type(subject.template).__name__
    encoded = [ImageLayout(len(image.rows), image.layout) for image in subject.plain_rows]
    announced = list(encoded)
    for i, image in enumerate(plain_images()):
        inputs = subject.vision_model.preprocess(image)
        if isinstance(inputs, ImageInputs) and inputs.num_rows is not None:
            announced[i] = ImageLayout(encoded[i].num_rows, inputs.layout)
    for image, layout in zip(plain_images() * 2, encoded + announced, strict=True):
        expansion = expand_slot(template, ImageSlot(0), layout.layout, layout.num_rows)
        placed = sum(part.num_rows for part in expansion if isinstance(part, Rows))
        if placed != layout.num_rows:
            fail(
                expected=f"runs of rows that sum to {layout.num_rows}",
                actual=f"{placed} rows",
                where=f"expand of {name}, an image of {image.width} x {image.height} pixels",
                advice="let the Rows of an expansion sum to num_rows",
            )
    for layouts in (encoded, announced):
        _expect_spans(subject, layouts)


def _expect_spans(subject: Subject, layouts: Sequence[ImageLayout]) -> None:
    for i, layout in enumerate(layouts):
        prompt = _build(subject, [_message("user", None, f"Picture {i}?")], [layout])
        rows = [
            row
            for span in prompt.spans
            for row in range(span.first_row, span.first_row + span.stop - span.start)
        ]
        if rows != list(range(layout.num_rows)):
            fail(
                expected=f"spans over the rows 0 to {layout.num_rows - 1}, in order",
                actual=f"{len(rows)} positions in {len(prompt.spans)} spans",
                where="the prompt of one image",
                advice="keep the rows of an image in their order in expand",
            )


@check("user-text-is-text", "nothing that a user types becomes an image slot or a special token")
def user_text_is_text(subject: Subject) -> None:
    """Type special tokens and marks, whole and in halves, and compare with a harmless text."""
    control = sorted(subject.prompt_tokenizer.special_tokens)[:_MAX_SPECIAL_TOKENS]
    marks = [*control, *subject.template.stop, *_MARKS.split(" ")]
    hostile = f"a {' b '.join(marks)} z"
    for role in ("user", "system"):
        try:
            harmless_parts = _typed(subject, role, _HARMLESS)
        except PromptError:  # no system text: see system-text
            continue
        parts = _typed(subject, role, hostile)
        where = f"messages2prompt of {type(subject.template).__name__}, text of the {role}"
        _expect_slots(parts, 1, where)
        if _control_of(parts) != _control_of(harmless_parts):
            fail(
                expected=f"the template's own text: {_control_of(harmless_parts)!r:.300}",
                actual=f"{_control_of(parts)!r:.300}",
                where=where,
                advice="put what people write into Text, what the template writes into Control",
            )
        if hostile not in _text_of(parts):
            fail(
                expected=f"what was typed, letter by letter: {hostile!r:.200}",
                actual=f"{_text_of(parts)!r:.300}",
                where=where,
                advice="pass the text on as it is; no mark in it has a meaning",
            )
        counts = [_count_special(subject, one) for one in (parts, harmless_parts)]
        if counts[0] != counts[1]:
            fail(
                expected=f"special tokens as with a harmless text: {dict(counts[1])}",
                actual=f"{dict(counts[0])}",
                where=f"token ids, text of the {role}",
                advice="see that the tokenizer's special tokens are added tokens marked special",
            )
    _expect_halves_to_stay_text(subject, control)


def _expect_halves_to_stay_text(subject: Subject, control: Sequence[str]) -> None:
    halves = [
        half for token in control for half in (token[: len(token) // 2], token[len(token) // 2 :])
    ]
    typed, harmless = (
        write_prompt(subject.template, [_message("user", *texts, None)])
        for texts in (halves, [_HARMLESS] * len(halves))
    )
    counts = [_count_special(subject, one) for one in (typed, harmless)]
    if counts[0] != counts[1]:
        fail(
            expected=f"the same special tokens as with harmless texts: {dict(counts[1])}",
            actual=f"{dict(counts[0])}",
            where="token ids, halves of special tokens in neighbouring parts of a message",
            advice="pass every text as a Text of its own; joined texts stay Text",
        )


def _typed(subject: Subject, role: str, text: str) -> tuple[PromptPart, ...]:
    messages = [_message("user", None, text if role == "user" else _HARMLESS)]
    if role == "system":
        messages.insert(0, _message("system", text))
    return write_prompt(subject.template, messages)


def _count_special(subject: Subject, parts: Sequence[PromptPart]) -> Counter[str]:
    prompt = subject.prompt_tokenizer.build(parts, [ImageLayout(1)])
    covered = {i for span in prompt.spans for i in range(span.start, span.stop)}
    names = {
        token_id: text for text, (token_id, _) in subject.prompt_tokenizer.special_tokens.items()
    }
    found = Counter(
        names[token_id]
        for i, token_id in enumerate(prompt.token_ids)
        if token_id in names and i not in covered
    )
    for unknown in ("<unk>", "[UNK]"):  # a character that the vocabulary lacks
        found.pop(unknown, None)
    return found


@check("turns-in-order", "every turn of a conversation is in the prompt, once and in order")
def turns_in_order(subject: Subject) -> None:
    """Check for the texts of three user and two assistant messages, and for their images."""
    texts = [f"{word} {i}" for i, word in enumerate(("Apple?", "Pear.", "Plum?", "Fig.", "Kiwi?"))]
    roles = ("user", "assistant", "user", "assistant", "user")
    messages = [_message(role, text) for role, text in zip(roles, texts, strict=True)]
    where = f"messages2prompt of {type(subject.template).__name__}, a conversation of five turns"
    joined = _joined(write_prompt(subject.template, messages))
    found = re.findall("|".join(map(re.escape, texts)), joined)
    if found != texts:
        fail(
            expected=f"{texts}, once and in order",
            actual=f"{found} in {joined!r:.400}",
            where=where,
            advice="write all messages, including earlier responses",
        )
    try:
        parts = write_prompt(
            subject.template,
            [
                _message("user", None, texts[0]),
                _message("assistant", texts[1]),
                _message("user", None, texts[2]),
            ],
        )
    except PromptError:  # a model may take one image only
        return
    slots = [i for i, part in enumerate(parts) if isinstance(part, ImageSlot)]
    if len(slots) != 2:
        raise NotRunError("images have no separate slots: see one-slot-per-image")
    first, second = slots
    if texts[1] not in _joined(parts[first:second]) or texts[1] in _joined(parts[second:]):
        fail(
            expected="the first image before the response, the second after it",
            actual=repr(_joined(parts))[:400],
            where=f"messages2prompt of {type(subject.template).__name__}, images in two turns",
            advice="keep every image in its own turn",
        )


@check("system-text", "a system message is in the prompt before the user's, or raises PromptError")
def system_text(subject: Subject) -> None:
    """Build a prompt with a system message."""
    system_text = "Speak like a lighthouse keeper."
    try:
        parts = write_prompt(
            subject.template, [_message("system", system_text), _message("user", _HARMLESS)]
        )
    except PromptError:
        return
    joined = _joined(parts)
    if joined.count(system_text) != 1 or joined.find(system_text) > joined.find(_HARMLESS):
        fail(
            expected=f"{system_text!r} once, before {_HARMLESS!r}",
            actual=repr(joined)[:400],
            where=f"messages2prompt of {type(subject.template).__name__}",
            advice="write the system message, or raise vlcore.PromptError if the model has none",
        )


def _build(
    subject: Subject, messages: _Conversation, images: Sequence[ImageLayout]
) -> TokenizedPrompt:
    parts = write_prompt(subject.template, messages)
    return subject.prompt_tokenizer.build(parts, images, subject.template)


def _joined(parts: Sequence[PromptPart]) -> str:
    return "".join("<image>" if isinstance(part, ImageSlot) else part.text for part in parts)


def _text_of(parts: Sequence[PromptPart]) -> str:
    return "\n".join(part.text for part in parts if isinstance(part, Text))


def _control_of(parts: Sequence[PromptPart]) -> str:
    return "".join(
        part.text if isinstance(part, Control) else "\N{WHITE SQUARE}"
        for part in parts
        if not isinstance(part, Text)
    )

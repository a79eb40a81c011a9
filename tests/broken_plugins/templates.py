"""Faults of a chat template."""

from __future__ import annotations

from broken_plugins.fault import Broken

TEMPLATES = [
    Broken(
        "a template that does not load",
        "template-loads",
        "UnboundLocalError",
        {"    return TEMPLATE\n": "    return TEMPLATE\n    TEMPLATE = None\n"},
        also=("rest",),
    ),
    Broken(
        "a template for any name",
        "template-name",
        "a PatchworkTemplate",
        {'if name not in (None, "plain"):': "if False:"},
    ),
    Broken(
        "all images but the first forgotten",
        "one-slot-per-image",
        "slots [0]",
        more="""
    def messages2prompt(self, messages):
        parts = super().messages2prompt(messages)
        return tuple(part for part in parts if getattr(part, "index", 0) == 0)
""",
        also=("turns-in-order",),
    ),
    Broken(
        "a slot too many next to a text",
        "one-slot-per-image",
        "slots [0, 0]",
        more="""
    def append_image_token(self, prompt, num_images):
        parts = super().append_image_token(prompt, num_images)
        return (ImageSlot(0), *parts) if num_images else parts
""",
        also=("spans-sum", "turns-in-order", "user-text-is-text"),
    ),
    Broken(
        "a row left out between the others",
        "spans-sum",
        "12 rows",
        {"for _ in range(rows) for part": "for _ in range(3) for part"},
    ),
    Broken(
        "user text among the template's own",
        "user-text-is-text",
        "<s>",
        more="""
    def messages2prompt(self, messages):
        parts = super().messages2prompt(messages)
        return tuple(Control(part.text) if hasattr(part, "text") else part for part in parts)
""",
    ),
    Broken(
        "a mark in the text taken for an image",
        "user-text-is-text",
        "slots [0, 1]",
        more="""
    def messages2prompt(self, messages):
        found = []
        for part in super().messages2prompt(messages):
            text = getattr(part, "text", "")
            found.append(part)
            if "<image>" in text:
                found.append(ImageSlot(1))
        return tuple(found)
""",
    ),
    Broken(
        "neighbouring texts joined as the template's own",
        "user-text-is-text",
        "'</s>': 1",
        more="""
    def messages2prompt(self, messages):
        joined = []
        for part in super().messages2prompt(messages):
            before = joined[-1] if joined else None
            if type(part).__name__ == type(before).__name__ == "Text":
                joined[-1] = Control(before.text + part.text.removeprefix("\\n"))
            else:
                joined.append(part)
        return tuple(joined)
""",
    ),
    Broken(
        "only the last turn",
        "turns-in-order",
        "['Kiwi? 4']",
        more="""
    def messages2prompt(self, messages):
        first = [m for m in messages[:1] if m["role"] == "system"]
        return super().messages2prompt([*first, *messages[-1:]])
""",
        also=("one-slot-per-image", "continued-answer", "joined-messages"),
    ),
    Broken(
        "the system text left out",
        "system-text",
        "USER",
        more="""
    def messages2prompt(self, messages):
        return super().messages2prompt([m for m in messages if m["role"] != "system"])
""",
        also=("user-text-is-text", "continued-answer", "joined-messages"),
    ),
    Broken(
        "an end mark after the answer to continue",
        "continued-answer",
        "</s>",
        more="""
    def messages2prompt(self, messages):
        return (*super().messages2prompt(messages), Control("</s>"))
""",
    ),
    Broken(
        "an answer that is always continued",
        "continued-answer",
        "the two is",
        more="""
    def messages2prompt(self, messages):
        return super().messages2prompt(list(messages))
""",
    ),
    Broken(
        "a mark where two messages have the same role",
        "joined-messages",
        "Look.",
        more="""
    def messages2prompt(self, messages):
        roles = [message["role"] for message in messages if isinstance(message, dict)]
        is_doubled = any(first == second for first, second in zip(roles, roles[1:]))
        return (*super().messages2prompt(messages), *[Control("</s>")] * is_doubled)
""",
    ),
    Broken(
        "a stop that is a string of letters",
        "stop-words",
        "'###'",
        {'    stop=("</s>",),': '    stop=("###"),'},
    ),
    Broken(
        "a stop that is misspelt",
        "stop-words",
        "no added token of this name",
        {'    stop=("</s>",),': '    stop=("</S>",),'},
    ),
    Broken(
        "an answer whose last token ends nothing",
        "stop-words",
        "stop ('</s>',)",
        {'    answer_suffix="</s>",': '    answer_suffix="<s>",'},
    ),
]

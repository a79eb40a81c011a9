from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from vlcore.errors import PromptError
from vlcore.prompts.chat_template import ChatTemplate, RoleTemplate
from vlcore.prompts.messages import Control, ImageSlot, Message, PromptPart, Text, parse_messages
from vlcore.prompts.regions import Region

PLAIN = RoleTemplate(
    user_prefix="U:",
    user_suffix=" ",
    assistant_prefix="A:",
    answer_prefix="[",
    answer_suffix="]",
    system="be kind",
    system_prefix="S<",
    system_suffix=">",
    image_prefix="(",
    image_suffix=")",
)
QUESTION = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "hi"}
IMAGE = {"type": "image", "image": None}


def user(*content: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in content]
    return {"role": "user", "content": parts}


# -- parse_messages


def test_a_text_becomes_one_part() -> None:
    assert parse_messages([QUESTION]) == (Message("user", (Text("hello"),)),)


def test_messages_pass_through() -> None:
    message = Message("user", (ImageSlot(0), Text("hello")))
    (parsed,) = parse_messages([message])
    assert parsed is message


def test_images_are_numbered_over_the_whole_conversation() -> None:
    first, _, second = parse_messages(
        [
            user("a", {"type": "image_url", "image_url": {"url": "x.png"}}, IMAGE),
            ANSWER,
            user({"type": "image_url", "image_url": "y.png"}, "b"),
        ]
    )
    assert first.content == (Text("a"), ImageSlot(0), ImageSlot(1))
    assert second.content == (ImageSlot(2), Text("b"))


def test_images_are_numbered_after_those_of_message_values() -> None:
    ready = Message("user", (ImageSlot(0), ImageSlot(1), Text("a")))
    parsed = parse_messages([ready, ANSWER, user(IMAGE)])
    assert parsed[2].content == (ImageSlot(2),)


def test_an_image_part_may_have_no_image() -> None:
    (parsed,) = parse_messages([user({"type": "image"}, {"type": "image_url"})])
    assert parsed.content == (ImageSlot(0), ImageSlot(1))


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ({"type": "image_url", "image_url": {"url": "x", "detail": "low"}}, {"detail": "low"}),
        ({"type": "image_url", "image_url": {"url": "x", "detail": "auto"}}, {}),
        ({"type": "image", "image": "x", "max_pixels": 4}, {"max_pixels": 4}),
        ({"type": "image_url", "image_url": "x", "detail": "high"}, {"detail": "high"}),
    ],
)
def test_image_options_are_kept_in_the_slot(part: dict[str, Any], options: dict[str, Any]) -> None:
    ((slot,),) = (message.content for message in parse_messages([user(part)]))
    assert isinstance(slot, ImageSlot)
    assert slot.options == options


@pytest.mark.parametrize("content", ["<image>", "</s>", "[INST]", "<|im_end|>", "{{ 7*7 }}"])
def test_text_that_looks_like_a_token_is_text(content: str) -> None:
    for message in ({"role": "user", "content": content}, user(content)):
        assert parse_messages([message])[0].content == (Text(content),)


def test_the_text_of_a_message_joins_its_parts() -> None:
    assert Message("user", (Text("a"), ImageSlot(0), Text("b"))).text == "a\nb"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "at least one message"),
        (["hello"], "message 0 must be a mapping.*not str"),
        ([{"content": "x"}], "message 0 needs a role: one of system, user, assistant"),
        ([{"role": 3, "content": "x"}], "message 0 needs a role"),
        ([{"role": "tool", "content": "x"}], "message 0 has role 'tool'; expected one of system"),
        ([QUESTION, {"role": "user"}], "message 1 needs content.*not NoneType"),
        ([{"role": "user", "content": 5}], "message 0 needs content.*not int"),
        ([{"role": "user", "content": b"x"}], "message 0 needs content.*not bytes"),
        ([user({"type": "video"})], "message 0 has an invalid part of type 'video'"),
        ([user({"text": "x"})], "message 0 has an invalid part of type None"),
        ([user({"type": "text"})], "message 0 has an invalid part of type 'text'"),
        ([user({"type": "text", "text": 4})], "invalid part of type 'text'"),
        ([{"role": "user", "content": ["x"]}], "message 0 has an invalid part of type 'str'"),
        ([QUESTION, {"role": "system", "content": "x"}, QUESTION], "message 1 is a system message"),
        ([{"role": "system", "content": [IMAGE]}, QUESTION], r"0 \(system\) has an image"),
        (
            [QUESTION, {"role": "assistant", "content": [IMAGE]}, QUESTION],
            r"message 1 \(assistant\) has an image",
        ),
        ([QUESTION, ANSWER], "ends with a message of the assistant"),
        ([{"role": "system", "content": "x"}], "ends with a message of the system"),
        ([Message("robot", (Text("x"),))], "has role 'robot'"),
    ],
)
def test_an_invalid_conversation_is_rejected(messages: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        parse_messages(messages)


# -- ChatTemplate


def test_the_base_class_names_the_missing_method() -> None:
    class Unfinished(ChatTemplate):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished must define messages2prompt"):
        Unfinished().messages2prompt([QUESTION])


def test_the_base_class_puts_images_on_lines_before_the_prompt() -> None:
    assert ChatTemplate().append_image_token("hello", 2) == (
        ImageSlot(0),
        Control("\n"),
        ImageSlot(1),
        Control("\n"),
        Text("hello"),
    )


# -- RoleTemplate


def test_a_message_is_between_the_texts_of_its_role() -> None:
    assert PLAIN.messages2prompt([QUESTION]) == (
        Control("S<"),
        Text("be kind"),
        Control(">"),
        Control("U:"),
        Text("hello"),
        Control(" A:"),
    )


def test_earlier_turns_are_repeated() -> None:
    prompt = PLAIN.render([QUESTION, ANSWER, QUESTION, ANSWER, QUESTION])
    assert prompt == "S<be kind>U:hello A:[hi]U:hello A:[hi]U:hello A:"


def test_a_system_message_replaces_the_default() -> None:
    own = {"role": "system", "content": "be brief"}
    assert PLAIN.render([own, QUESTION]) == "S<be brief>U:hello A:"


def test_an_empty_system_message_removes_it() -> None:
    assert PLAIN.render([{"role": "system", "content": ""}, QUESTION]) == "U:hello A:"


def test_without_system_text_its_prefix_and_suffix_are_left_out() -> None:
    bare = RoleTemplate("U:", " ", "A:", system_prefix="S<", system_suffix=">")
    assert bare.render([QUESTION]) == "U:hello A:"


def test_the_system_text_may_be_inside_the_first_turn() -> None:
    inside = RoleTemplate(
        "[INST] ",
        " [/INST]",
        "",
        system="be kind",
        system_prefix="<<SYS>>",
        system_suffix="<</SYS>> ",
        system_inside_first_turn=True,
    )
    first = "[INST] <<SYS>>be kind<</SYS>> hello [/INST]"
    assert inside.render([QUESTION]) == first
    assert inside.render([QUESTION, ANSWER, QUESTION]) == f"{first}hi[INST] hello [/INST]"


def test_images_come_before_the_text_that_follows_them() -> None:
    assert PLAIN.render([user(IMAGE, IMAGE, "hello")]).endswith("U:(<image>)(<image>)hello A:")


def test_images_are_where_they_were_written() -> None:
    prompt = PLAIN.render([user("one", IMAGE, "two", "three", IMAGE)])
    assert prompt.endswith("U:one(<image>)two\nthree(<image>) A:")


def test_slots_keep_their_number_and_options() -> None:
    low = {"type": "image", "image": None, "detail": "low"}
    for second in (user(low, "b"), user("b", low)):
        parts = PLAIN.messages2prompt([user(IMAGE, "a"), ANSWER, second])
        slots = [part for part in parts if isinstance(part, ImageSlot)]
        assert slots == [ImageSlot(0), ImageSlot(1, options={"detail": "low"})]
        assert slots[1].options == {"detail": "low"}


def test_a_subclass_decides_how_images_come_before_a_prompt() -> None:
    class Numbered(RoleTemplate):
        def append_image_token(self, prompt: str, num_images: int) -> tuple[PromptPart, ...]:
            parts: list[PromptPart] = []
            for index in range(num_images):
                parts += (Control(f"Image {index + 1}: "), ImageSlot(index))
            return (*parts, Text(prompt))

    template = Numbered("U:", " ", "A:")
    assert template.render([user(IMAGE, IMAGE, "hello")]) == (
        "U:Image 1: <image>Image 2: <image>hello A:"
    )
    second_turn = template.render([user(IMAGE, "a"), ANSWER, user(IMAGE, "b")])
    assert second_turn == "U:Image 1: <image>a A:hiU:Image 1: <image>b A:"
    parts = template.messages2prompt([user(IMAGE, "a"), ANSWER, user(IMAGE, "b")])
    assert [part.index for part in parts if isinstance(part, ImageSlot)] == [0, 1]


@pytest.mark.parametrize("typed", ["<image>", "</s>", "U:", "x [INST] <image>\n</s>"])
def test_texts_of_messages_remain_text(typed: str) -> None:
    conversation = [
        {"role": "system", "content": typed},
        user(IMAGE, typed),
        {"role": "assistant", "content": typed},
        user(typed),
    ]
    parts = PLAIN.messages2prompt(conversation)
    assert [part.text for part in parts if isinstance(part, Text)] == [typed] * 4
    assert sum(isinstance(part, ImageSlot) for part in parts) == 1
    written = "".join(part.text for part in parts if isinstance(part, Control))
    assert written == "S<>U:() A:[]U: A:"


def test_render_takes_another_image_token() -> None:
    prompt = PLAIN.render([user(IMAGE, "<image>")], image_token="<|pic|>")
    assert prompt.endswith("U:(<|pic|>)<image> A:")


def test_no_part_is_empty() -> None:
    bare = RoleTemplate("", "", "", image_suffix="")
    assert bare.messages2prompt([user(IMAGE, "")]) == (ImageSlot(0),)


# -- subclasses


def test_images_are_numbered_per_message() -> None:
    numbered = replace(PLAIN, image_prefix="P{number}(")
    turns = [user(IMAGE, IMAGE, "same?"), ANSWER, user("first ", IMAGE, " then ", IMAGE)]
    prompt = numbered.render(turns)
    assert "U:P1(<image>)P2(<image>)same? A:" in prompt
    assert "U:first P1(<image>) then P2(<image>) A:" in prompt


def test_braces_elsewhere_are_text() -> None:
    assert replace(PLAIN, image_prefix="{n}{").render([user(IMAGE)]).endswith("{n}{<image>) A:")


def test_a_subclass_turns_earlier_answers_into_parts() -> None:
    @dataclass(frozen=True)
    class Marked(RoleTemplate):
        def answer2parts(self, answer: str) -> tuple[PromptPart, ...]:
            return (Control("<a>"), Text(answer))

    template = Marked(**vars(PLAIN))
    assert "A:[<a>hi]U:" in template.render([QUESTION, ANSWER, QUESTION])
    parts = template.messages2prompt([QUESTION, ANSWER, QUESTION])
    assert Control("<a>") in parts
    assert Text("hi") in parts


def test_regions_are_optional() -> None:
    assert not PLAIN.finds_regions
    with pytest.raises(NotImplementedError, match="RoleTemplate does not implement regions"):
        PLAIN.regions("there", (10, 10))


def test_a_subclass_finds_regions() -> None:
    class WithRegions(ChatTemplate):
        def regions(self, answer: str, size: tuple[int, int]) -> tuple[Region, ...]:
            return (Region(answer, (0, 0, *size)),)

    template = WithRegions()
    assert template.finds_regions
    assert template.regions("there", (10, 20)) == (Region("there", (0, 0, 10, 20)),)

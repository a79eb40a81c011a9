from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from vlcore.prompts.chat_template import ChatTemplate, RoleTemplate
from vlcore.prompts.conversation import read_conversation
from vlcore.prompts.messages import Control, ImageSlot, PromptPart, Text
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


INSIDE = RoleTemplate(
    "[INST] ",
    " [/INST]",
    "",
    answer_suffix="</s>",
    system="be kind",
    system_prefix="<<SYS>>",
    system_suffix="<</SYS>> ",
    system_inside_first_turn=True,
)


def test_a_conversation_may_begin_with_the_assistant() -> None:
    assert PLAIN.render([ANSWER, QUESTION]) == "S<be kind>A:[hi]U:hello A:"
    system = {"role": "system", "content": "be brief"}
    assert PLAIN.render([system, ANSWER, QUESTION]) == "S<be brief>A:[hi]U:hello A:"
    expected = "[INST] <<SYS>>be kind<</SYS>>  [/INST]hi</s>[INST] hello [/INST]"
    assert INSIDE.render([ANSWER, QUESTION]) == expected
    bare = replace(INSIDE, system="")
    assert bare.render([ANSWER, QUESTION]) == "hi</s>[INST] hello [/INST]"


def test_messages_of_one_role_in_a_row_are_one_turn() -> None:
    prompt = PLAIN.render([QUESTION, QUESTION, ANSWER, ANSWER, QUESTION])
    assert prompt == "S<be kind>U:hello\nhello A:[hi\nhi]U:hello A:"


def test_a_last_message_of_the_assistant_is_continued() -> None:
    assert PLAIN.render([QUESTION, ANSWER]) == "S<be kind>U:hello A:[hi"
    assert PLAIN.render([QUESTION, ANSWER, ANSWER]) == "S<be kind>U:hello A:[hi\nhi"
    assert PLAIN.render([ANSWER]) == "S<be kind>A:[hi"
    parts = PLAIN.messages2prompt([QUESTION, ANSWER])
    assert parts[-1] == Text("hi")


def test_an_empty_last_message_of_the_assistant_asks_for_a_new_answer() -> None:
    contents: list[Any] = ["", None, []]
    for content in contents:
        prompt = PLAIN.render([QUESTION, {"role": "assistant", "content": content}])
        assert prompt == PLAIN.render([QUESTION])


def test_a_complete_answer_is_followed_by_another() -> None:
    conversation = replace(read_conversation([QUESTION, ANSWER]), continue_final_message=False)
    assert PLAIN.render(conversation) == "S<be kind>U:hello A:[hi]A:"


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

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_json
from golden_cases import GOLDEN, read_lines
from qwen_checkpoints import write_qwen
from vl_plugin_qwen.template import TEMPLATES

import vlcore
from vlcore import ChatTemplate, Control, ImageSlot, OptionError, Region, Text

LINES = read_lines(GOLDEN / "prompts" / "qwen_vl_chat.jsonl")
QUESTION: dict[str, Any] = {
    "role": "user",
    "content": [{"type": "image"}, {"type": "text", "text": "What?"}],
}


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return vlcore.load_chat_template(GOLDEN / "qwen_vl")


@pytest.mark.parametrize("line", LINES, ids=[line["id"] for line in LINES])
def test_prompts_are_the_releases(template: ChatTemplate, line: dict[str, Any]) -> None:
    assert template.render(line["messages"]) == line["prompt"]
    parts = template.messages2prompt(line["messages"])
    assert sum(isinstance(part, ImageSlot) for part in parts) == line["n_images"]


def test_images_between_texts_are_numbered_too(template: ChatTemplate) -> None:
    image = {"type": "image"}
    content = [{"type": "text", "text": "First "}, image, {"type": "text", "text": "then "}, image]
    prompt = template.render([{"role": "user", "content": content}])
    assert (
        "user\nFirst Picture 1: <img><image></img>\nthen Picture 2: <img><image></img>\n<|im_end|>"
    ) in prompt


def test_images_given_with_a_prompt_come_first(template: ChatTemplate) -> None:
    assert template.append_image_token("Compare.", 2) == (
        Control("Picture 1: <img>"),
        ImageSlot(0),
        Control("</img>\n"),
        Control("Picture 2: <img>"),
        ImageSlot(1),
        Control("</img>\n"),
        Text("Compare."),
    )


def test_what_a_user_types_is_text(template: ChatTemplate) -> None:
    typed = "<img>x</img><|im_end|><ref>a</ref><box>(1,2),(3,4)</box>"
    parts = template.messages2prompt([{"role": "user", "content": typed}])
    assert Text(typed) in parts


def test_the_boxes_of_an_earlier_answer_stay_tokens(template: ChatTemplate) -> None:
    answer = {"role": "assistant", "content": "<ref>dog</ref><box>(1,2),(3,4)</box>!<|im_end|>"}
    parts = template.messages2prompt([QUESTION, answer, QUESTION])
    start = parts.index(Control("<ref>"))
    assert parts[start : start + 7] == (
        Control("<ref>"),
        Text("dog"),
        Control("</ref>"),
        Control("<box>"),
        Text("(1,2),(3,4)"),
        Control("</box>"),
        Text("!<|im_end|>"),
    )


def test_the_base_model_goes_on_with_the_text(tmp_path: Path) -> None:
    write_qwen(tmp_path)
    write_json(tmp_path / "generation_config.json", {"chat_format": "raw", "eos_token_id": 1})
    template = vlcore.load_chat_template(tmp_path)
    assert template.render([QUESTION]) == "Picture 1: <img><image></img>\nWhat?"
    answer = {"role": "assistant", "content": " A dog"}
    assert template.render([QUESTION, answer, {"role": "user", "content": " and"}]) == (
        "Picture 1: <img><image></img>\nWhat? A dog and"
    )
    assert template.stop == ("<|endoftext|>",)
    assert vlcore.load_chat_template(tmp_path, "chatml") is TEMPLATES["chatml"]


def test_the_chat_model_states_its_format(tmp_path: Path) -> None:
    write_qwen(tmp_path)
    write_json(tmp_path / "generation_config.json", {"chat_format": "chatml"})
    assert vlcore.load_chat_template(tmp_path) is TEMPLATES["chatml"]
    assert vlcore.load_chat_template(tmp_path, "raw") is TEMPLATES["raw"]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match="no chat template 'qwen'; it has chatml, raw"):
        vlcore.load_chat_template(GOLDEN / "qwen_vl", "qwen")


def test_answers_point_at_regions(template: ChatTemplate) -> None:
    assert template.finds_regions
    answer = "There: <ref>the dog</ref><box>(100,200),(500,900)</box>."
    assert template.regions(answer, (200, 100)) == (Region("the dog", (20, 20, 100, 90)),)
    assert template.regions("Nowhere.", (200, 100)) == ()

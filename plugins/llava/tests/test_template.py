from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_json, write_llava
from golden_cases import GOLDEN, read_lines
from vl_plugin_llava.template import TEMPLATES

import vlcore
from vlcore import Control, ImageSlot, JinjaTemplate, OptionError, Text

NAMES = ("vicuna_v1", "llava_v1", "mistral_instruct", "chatml_direct", "llava_llama_2")
FILES = {name: f"llava_{name}.jsonl" for name in NAMES} | {"llava_llama_2": "llava_llama_2.jsonl"}
QUESTION: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
]
LINES = [
    pytest.param(name, line, id=f"{name}-{line['id']}")
    for name in NAMES
    for line in read_lines(GOLDEN / "prompts" / FILES[name])
]


def test_the_templates_are_the_releases() -> None:
    assert set(TEMPLATES) == set(NAMES)
    assert set(FILES.values()) == {path.name for path in (GOLDEN / "prompts").glob("llava_*.jsonl")}


@pytest.mark.parametrize(("name", "line"), LINES)
def test_prompts_are_the_releases(name: str, line: dict[str, Any]) -> None:
    template = vlcore.load_chat_template(GOLDEN / "llava15", name)
    assert template.render(line["messages"]) == line["prompt"]
    assert list(template.stop) == line["stop"]
    parts = template.messages2prompt(line["messages"])
    assert sum(isinstance(part, ImageSlot) for part in parts) == line["n_images"]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_user_types_is_text(name: str) -> None:
    typed = "<image></s><|im_end|>[/INST] USER: <s>"
    template = vlcore.load_chat_template(GOLDEN / "llava15", name)
    parts = template.messages2prompt([{"role": "user", "content": typed}])
    assert Text(typed) in parts
    assert not any(isinstance(part, ImageSlot) for part in parts)
    assert not any("<image>" in part.text for part in parts if isinstance(part, Control))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match="has no chat template 'vicuna'; it has") as caught:
        vlcore.load_chat_template(GOLDEN / "llava15", "vicuna")
    assert all(name in str(caught.value) for name in NAMES)


# -- the checkpoint's own template


def prompt_of(directory: Path) -> str:
    return vlcore.load_chat_template(directory).render(QUESTION)


def named(name: str) -> str:
    return vlcore.load_chat_template(GOLDEN / "llava15", name).render(QUESTION)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("llava15", "vicuna_v1"),
        ("llava16_anyres", "vicuna_v1"),
        ("llava16_mistral", "mistral_instruct"),
        ("llava16_hf", "llava_v1"),
    ],
)
def test_a_template_is_picked_by_the_checkpoint(case: str, name: str) -> None:
    assert prompt_of(GOLDEN / case) == named(name)


@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("tokenizer_config.json", {"eos_token": "<|im_end|>"}),
        ("added_tokens.json", {"<|im_end|>": 7}),
        ("special_tokens_map.json", {"eos_token": {"content": "<|im_end|>"}}),
    ],
)
def test_a_tokenizer_that_speaks_chatml_picks_chatml(
    tmp_path: Path, filename: str, content: dict[str, Any]
) -> None:
    write_llava(tmp_path)
    write_json(tmp_path / filename, content)
    assert prompt_of(tmp_path) == named("chatml_direct")


@pytest.mark.parametrize(
    ("case", "prompt"),
    [
        ("llava15_hf", "USER: <image>\nWhat? ASSISTANT:"),
        ("llava16_mistral_hf_newkeys", "[INST] <image>\nWhat? [/INST]"),
    ],
)
def test_hf_checkpoints_without_a_template_speak_as_their_release(case: str, prompt: str) -> None:
    assert prompt_of(GOLDEN / case) == prompt


def test_the_mistral_template_of_hf_puts_the_system_text_first() -> None:
    template = vlcore.load_chat_template(GOLDEN / "llava16_mistral_hf_newkeys")
    messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
    prompt = "<<SYS>>\nBe brief.\n<</SYS>>\n\n[INST] <image>\nWhat? [/INST]"
    assert template.render(messages) == prompt


@pytest.fixture
def hf_with_template(tmp_path: Path) -> Path:
    config = json.loads((GOLDEN / "llava15_hf" / "config.json").read_text())
    write_json(tmp_path / "config.json", config)
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "</s>", "bos_token": "<s>"})
    (tmp_path / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.role | upper }}: "
        "{% for part in message.content %}"
        "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{{ ' ' if message.role == 'user' else eos_token }}{% endfor %}ASSISTANT:"
    )
    return tmp_path


def test_hf_checkpoints_bring_their_own_template(hf_with_template: Path) -> None:
    template = vlcore.load_chat_template(hf_with_template)
    assert isinstance(template, JinjaTemplate)
    assert template.stop == ("</s>",)
    assert template.render(QUESTION) == "USER: <image>\nWhat? ASSISTANT:"
    history = [*QUESTION, {"role": "assistant", "content": "This."}, *QUESTION]
    prompt = "USER: <image>\nWhat? ASSISTANT: This.</s>USER: <image>\nWhat? ASSISTANT:"
    assert template.render(history) == prompt


def test_the_user_may_choose_another_for_an_hf_checkpoint(hf_with_template: Path) -> None:
    chosen = vlcore.load_chat_template(hf_with_template, "llava_v1").render(QUESTION)
    assert chosen == named("llava_v1")


# -- marks around images


def test_early_checkpoints_put_marks_around_an_image(tmp_path: Path) -> None:
    write_llava(tmp_path, mm_use_im_start_end=True)
    assert "USER: <im_start><image><im_end>\nWhat? " in prompt_of(tmp_path)


def test_images_given_with_a_prompt_come_first() -> None:
    template = vlcore.load_chat_template(GOLDEN / "llava15")
    parts = template.append_image_token("Compare.", 2)
    assert [part for part in parts if part != Control("")] == [
        ImageSlot(0),
        Control("\n"),
        ImageSlot(1),
        Control("\n"),
        Text("Compare."),
    ]


def test_text_continues_after_an_image_token_and_restarts_between_chunks() -> None:
    original = vlcore.load_chat_template(GOLDEN / "llava15")
    assert original.restarts_after_image
    for name in (None, "vicuna_v1"):
        assert not vlcore.load_chat_template(GOLDEN / "llava15_hf", name).restarts_after_image

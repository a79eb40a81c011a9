from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import NUM_ROWS, write_llava
from PIL import Image
from pipeline_requests import BLUE, RED, SHORT, image_part, user

from vlcore.errors import (
    ContextLengthError,
    ImageError,
    OptionError,
    PluginContractError,
    PromptError,
)
from vlcore.flat_layout import FlatLanguageModel
from vlcore.inference.factory import pipeline
from vlcore.inference.pipeline import Pipeline
from vlcore.inference.response import Response
from vlcore.language.model import LanguageModel
from vlcore.language.prompt_inputs import PromptInputs
from vlcore.prompts import conversation
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.prompts.messages import Message, PromptPart, Text
from vlcore.prompts.tokenization import ImageLayout, TokenizedPrompt


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


# -- one prompt


def test_a_response_states_its_number_of_tokens(pipe: Pipeline) -> None:
    response = pipe(("hello", RED), SHORT)
    assert isinstance(response, Response)
    assert response.text
    assert len(response.token_ids) == response.generate_token_len == 6
    assert (response.finish_reason, response.index, response.error) == ("length", 0, None)
    assert response.raise_for_error() is response
    template_tokens = pipe("hello", SHORT).input_token_len
    assert response.input_token_len > template_tokens + NUM_ROWS - 1


def test_every_form_of_a_prompt_gives_the_same_response(pipe: Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(png(RED))
    url = "data:image/png;base64," + base64.b64encode(png(RED)).decode()
    expected = pipe(("hello", RED), SHORT)
    prompts: list[Any] = [
        (RED, "hello"),
        ("hello", [RED]),
        ("hello", file),
        (str(file), "hello"),
        ("hello", url),
        ("hello", png(RED)),
        [user(image_part(RED), "hello")],
        [user({"type": "image_url", "image_url": {"url": url}}, "hello")],
        [user({"type": "image_url", "image_url": file.as_uri()}, "hello")],
    ]
    for response in pipe(prompts, SHORT):
        assert response.raise_for_error().token_ids == expected.token_ids
        assert response.input_token_len == expected.input_token_len
    assert pipe(("hello", BLUE), SHORT).text != expected.text


def test_the_order_of_images_matters(pipe: Pipeline) -> None:
    both = pipe(("hello", [RED, BLUE]), SHORT)
    assert both.input_token_len > pipe(("hello", RED), SHORT).input_token_len + NUM_ROWS - 1
    assert pipe(("hello", [BLUE, RED]), SHORT).text != both.text
    assert pipe([user(image_part(RED), image_part(BLUE), "hello")], SHORT).text == both.text
    assert pipe([user(image_part(RED), "hello", image_part(BLUE))], SHORT).text != both.text


def test_messages_are_read_once(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    positions: list[int] = []
    read_message = conversation._read_message

    def recorded(message: object, position: int, images: list[Any]) -> Message:
        positions.append(position)
        return read_message(message, position, images)

    monkeypatch.setattr(conversation, "_read_message", recorded)
    answer = {"role": "assistant", "content": "a cat"}
    pipe([user(image_part(RED), "hello"), answer, user("and now?")], SHORT)
    assert positions == [0, 1, 2]


def test_a_language_model_states_the_positions_of_a_prompt(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, list[ImageLayout], bool]] = []
    step = 1

    def prompt_inputs(
        model: LanguageModel, prompt: TokenizedPrompt, layouts: Sequence[ImageLayout]
    ) -> PromptInputs:
        num_tokens = len(prompt.token_ids)
        is_off_loop = asyncio._get_running_loop() is None
        seen.append((num_tokens, list(layouts), is_off_loop))
        return PromptInputs(torch.arange(num_tokens)[None] * step, num_tokens * (step - 1))

    question = ("hello", [RED, BLUE])
    with pipeline(checkpoint, device="cpu") as pipe:
        usual = pipe(question, SHORT)
    monkeypatch.setattr(FlatLanguageModel, "prompt_inputs", prompt_inputs, raising=False)
    with pipeline(checkpoint, device="cpu") as pipe:
        with pytest.raises(PluginContractError, match="need mrope, which requires does not name"):
            pipe(question, SHORT)
        monkeypatch.setattr(FlatLanguageModel, "requires", frozenset({"mrope"}))
        seen.clear()
        assert pipe(question, SHORT) == usual
        step = 3
        assert pipe(question, SHORT) != usual
        step = 100
        (failed,) = pipe([question], SHORT)
        assert "positions must be in 0..512" in str(failed.error)
    call = (usual.input_token_len, [ImageLayout(NUM_ROWS)] * 2, True)
    assert seen[:2] == [call, call]


def test_a_last_message_of_the_assistant_is_continued(pipe: Pipeline) -> None:
    partial = {"role": "assistant", "content": "It is"}
    messages = [user(image_part(RED), "hello"), partial]
    parts = pipe.template.messages2prompt(messages)
    tokens = pipe._runner.tokenizer.build(parts, [ImageLayout(NUM_ROWS)], pipe.template)
    response = pipe(messages, SHORT)
    assert response.input_token_len == len(tokens.token_ids)
    assert response.text != pipe(messages[:1], SHORT).text
    explicit = {"max_new_tokens": 6, "continue_final_message": True}
    assert pipe(messages, explicit) == response
    complete = pipe(messages, explicit | {"continue_final_message": False})
    assert complete.input_token_len > response.input_token_len
    with pytest.raises(PromptError, match="continue_final_message needs a last message"):
        pipe("hello", explicit)
    with pytest.raises(OptionError, match="continue_final_message must be True, False or None"):
        pipe("hello", {"continue_final_message": "yes"})


def test_generation_options_may_be_a_mapping(pipe: Pipeline) -> None:
    assert pipe("hello", {"max_new_tokens": 6}) == pipe("hello", SHORT)
    with pytest.raises(OptionError, match=r"option\(s\) beams; known: n, max_new_tokens"):
        pipe("hello", {"beams": 4})
    with pytest.raises(OptionError, match="top_p must be"):
        pipe([], {"top_p": 7.0})
    with pytest.raises(OptionError, match=r"gen_config must be .* not int"):
        pipe("hello", 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "error", "reason"),
    [
        (5, PromptError, "a prompt must be a text"),
        (("a", RED, RED), PromptError, "has 3 items"),
        ([{"role": "robot", "content": "a"}], PromptError, "role 'robot'"),
        (("a", "/absent/red.png"), ImageError, "no file '/absent/red.png'"),
        (("a", b"not an image"), ImageError, "is not a"),
        (("a", Image.new("RGB", (0, 4))), ImageError, "no pixels"),
        ([user(image_part(RED) | {"zoom": 2}, "a")], OptionError, r"image option\(s\) zoom"),
        ("x" * 3000, ContextLengthError, "context length is 512"),
    ],
)
def test_an_invalid_prompt_raises(
    pipe: Pipeline, prompt: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        pipe(prompt, SHORT)
    (response,) = pipe([prompt], SHORT)
    assert isinstance(response.error, error)
    assert pipe("hello", SHORT).finish_reason == "length"


def test_image_and_special_tokens_that_a_user_types_remain_text(pipe: Pipeline) -> None:
    typed = pipe("<image> </s>", SHORT)
    assert typed.finish_reason in ("stop", "length")
    with_image = pipe(("<image> </s>", RED), SHORT)
    assert with_image.input_token_len > typed.input_token_len + NUM_ROWS - 1


def test_a_template_that_omits_an_image_is_an_error(checkpoint: Path) -> None:
    class Forgetful(ChatTemplate):
        def messages2prompt(self, messages: Any) -> tuple[PromptPart, ...]:
            return (Text(messages[0].text),)

    with (
        pipeline(checkpoint, device="cpu", chat_template=Forgetful()) as pipe,
        pytest.raises(PromptError, match=r"0 image slot.* 1 image"),
    ):
        pipe(("hello", RED), SHORT)


# -- malicious checkpoints and images


def test_code_of_the_checkpoint_never_runs(tmp_path: Path) -> None:
    directory = write_llava(tmp_path / "llava")
    ran = tmp_path / "ran"
    (directory / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Evil: pass\n")
    for file, kinds in (
        ("config.json", ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")),
        ("tokenizer_config.json", ("AutoTokenizer",)),
        ("clip/config.json", ("AutoConfig", "AutoModel")),
        ("clip/preprocessor_config.json", ("AutoImageProcessor", "AutoProcessor")),
    ):
        path = directory / file
        classes = dict.fromkeys(kinds, "evil.Evil")
        if "AutoTokenizer" in classes:
            classes["AutoTokenizer"] = [None, "evil.Evil"]  # type: ignore[assignment]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": classes}))
    with pipeline(directory, device="cpu") as pipe:
        assert pipe(("hello", RED), SHORT).generate_token_len > 0
    assert not ran.exists()


@pytest.mark.parametrize("size", [(1, 1), (4000, 1), (1, 4000)])
def test_an_image_of_an_unusual_shape_does_not_affect_others(
    pipe: Pipeline, size: tuple[int, int]
) -> None:
    alone = pipe(("hello", RED), SHORT)
    odd, good = pipe([("hello", Image.new("RGB", size, "red")), ("hello", RED)], SHORT)
    assert odd.error is None
    assert odd.generate_token_len > 0
    assert good.token_ids == alone.token_ids


def test_invalid_text_in_one_prompt_does_not_affect_the_others(pipe: Pipeline) -> None:
    alone = pipe(("hello", RED), SHORT)
    prompts: list[Any] = ["a\ud800", ("hello", RED), "<image></s>", ["no", "prompt", 3]]
    surrogate, good, typed, malformed = pipe(prompts, SHORT)
    assert isinstance(surrogate.error, PromptError)
    assert isinstance(malformed.error, PromptError)
    assert typed.error is None
    assert good.token_ids == alone.token_ids


# -- a list of prompts


def test_responses_to_a_list_are_in_order_and_a_failed_prompt_does_not_affect_others(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    prompts: list[Any] = ["one", ("two", RED), ("three", "/absent.png"), ("four", [BLUE, RED]), 5]
    alone = [pipe(prompts[i], SHORT) for i in (0, 1, 3)]
    responses = pipe(prompts, SHORT)
    assert [response.index for response in responses] == [0, 1, 2, 3, 4]
    assert [responses[i].token_ids for i in (0, 1, 3)] == [response.token_ids for response in alone]
    assert [responses[i].text for i in (0, 1, 3)] == [response.text for response in alone]
    for index, error in ((2, ImageError), (4, PromptError)):
        bad = responses[index]
        assert (bad.finish_reason, bad.text, bad.token_ids) == ("error", "", ())
        with pytest.raises(error):
            bad.raise_for_error()
    assert "prompt 2 failed" in caplog.text


def test_an_empty_list_has_no_responses(pipe: Pipeline) -> None:
    assert pipe([], SHORT) == []
    assert list(pipe.stream_infer([], SHORT)) == []


def test_a_long_list_is_processed_completely(pipe: Pipeline) -> None:
    prompts: list[Any] = [f"question {number}" for number in range(70)]
    responses = pipe(prompts, {"max_new_tokens": 1})
    assert [response.index for response in responses] == list(range(70))
    assert {response.generate_token_len for response in responses} == {1}


def test_a_progress_bar_is_optional(pipe: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    prompts: list[Any] = ["a", "b", ("c", "/absent.png")]
    pipe(prompts, SHORT)
    assert "prompt" not in capsys.readouterr().err.replace("prompt 2 failed", "")
    pipe(prompts, SHORT, use_tqdm=True)
    assert "3/3" in capsys.readouterr().err


# -- options


def test_invalid_unicode_is_rejected(pipe: Pipeline) -> None:
    with pytest.raises(PromptError, match="not valid Unicode"):
        pipe("a\ud800b", SHORT)

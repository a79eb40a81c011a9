from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from checkpoints import NUM_ROWS, write_llava
from held_engine import held
from PIL import Image
from waits import TIMEOUT_S, wait_for

from vlcore.engines.generation import GenerationConfig
from vlcore.engines.transformers.engine import TransformersEngineConfig
from vlcore.errors import (
    CheckpointNotFoundError,
    ContextLengthError,
    EngineClosedError,
    EngineUnavailableError,
    ImageError,
    ImageLimitError,
    NoPluginError,
    OptionError,
    PluginContractError,
    PromptError,
)
from vlcore.flat_layout import FlatLanguageModel
from vlcore.inference.factory import pipeline
from vlcore.inference.pipeline import Pipeline
from vlcore.inference.response import Response, Session
from vlcore.language.model import LanguageModel
from vlcore.language.prompt_inputs import PromptInputs
from vlcore.media.policy import ImageLimits
from vlcore.prompts import conversation
from vlcore.prompts.chat_template import ChatTemplate, RoleTemplate
from vlcore.prompts.messages import Control, Message, PromptPart, Text
from vlcore.prompts.tokenization import ImageLayout, TokenizedPrompt
from vlcore.vision.stats import EncoderStats

SHORT = GenerationConfig(max_new_tokens=6)
RED = Image.new("RGB", (50, 30), "red")
BLUE = Image.new("RGB", (30, 50), "blue")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("pipeline") / "llava")


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> Iterator[Pipeline]:
    with pipeline(checkpoint, device="cpu", dtype="float32") as made:
        yield made


@pytest.fixture
def fresh(checkpoint: Path) -> Iterator[Pipeline]:
    """A pipeline whose counts are zero, or that a test closes."""
    with pipeline(checkpoint, device="cpu", dtype="float32") as made:
        yield made


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def user(*content: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in content]
    return {"role": "user", "content": parts}


def image_part(image: Any) -> dict[str, Any]:
    return {"type": "image", "image": image}


def join(chunks: list[Response], index: int = 0) -> tuple[str, tuple[int, ...]]:
    own = [chunk for chunk in chunks if chunk.index == index]
    text = "".join(chunk.text for chunk in own)
    return text, tuple(token_id for chunk in own for token_id in chunk.token_ids)


# -- several responses, log-probabilities and logits

SAMPLED = GenerationConfig(max_new_tokens=6, n=3, do_sample=True, random_seed=1, temperature=3.0)


def test_n_responses_are_returned_with_the_first(pipe: Pipeline) -> None:
    response = pipe(("hello", RED), SAMPLED)
    assert [answer.choice for answer in response.choices] == [0, 1, 2]
    assert len({answer.token_ids for answer in response.choices}) == 3
    assert response.token_ids == response.choices[0].token_ids
    first, second = pipe([("hello", RED), "hello"], SAMPLED)
    assert first == response
    assert (second.index, len(second.choices)) == (1, 3)


def test_chunks_of_n_responses_state_their_choice(pipe: Pipeline) -> None:
    expected = pipe(["hello", ("hello", RED)], SAMPLED)
    for prompts in (["hello", ("hello", RED)], "hello"):
        chunks = list(pipe.stream_infer(prompts, SAMPLED))
        for index in range(len(prompts) if isinstance(prompts, list) else 1):
            for answer in expected[index].choices:
                own = [p for p in chunks if (p.index, p.choice) == (index, answer.choice)]
                assert "".join(chunk.text for chunk in own) == answer.text
                assert [bool(chunk.finish_reason) for chunk in own].count(True) == 1
                assert own[-1].generate_token_len == answer.generate_token_len


def test_a_stream_of_n_responses_ends_in_spite_of_a_failed_prompt(pipe: Pipeline) -> None:
    chunks = list(pipe.stream_infer(["hello", ("hello", "missing.png")], SAMPLED))
    assert [p.index for p in chunks if p.finish_reason == "error"] == [1]
    assert sum(p.finish_reason == "length" for p in chunks) == 3


def test_a_session_continues_with_one_response(pipe: Pipeline) -> None:
    with pytest.raises(OptionError, match="n must be 1; it is 3"):
        pipe.chat("hello", None, SAMPLED)


def test_logprobs_and_logits_are_part_of_the_response(pipe: Pipeline) -> None:
    options = {"max_new_tokens": 6, "logprobs": 2, "output_logits": "all"}
    response = pipe(("hello", RED), options)
    assert response.logits is not None
    assert response.prompt_logits is not None
    assert response.logits.shape == (6, 700)
    assert response.prompt_logits.shape == (response.input_token_len, 700)
    expected = response.logits.log_softmax(-1)
    for row, token_id, logprobs in zip(
        expected, response.token_ids, response.logprobs, strict=True
    ):
        assert logprobs[token_id] == pytest.approx(float(row[token_id]), abs=1e-5)
        assert len(logprobs) == 2  # greedy: the token is the most likely one
    assert int(response.prompt_logits[-1].argmax()) == response.token_ids[0]
    assert pipe(("hello", RED), SHORT).logits is None


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


def test_a_session_has_the_whole_of_a_continued_message(pipe: Pipeline) -> None:
    partial = {"role": "assistant", "content": "It is"}
    session = pipe.chat([user("hello"), partial], gen_config=SHORT)
    assert session.response is not None
    texts = [message.text for message in session.messages]
    assert texts == ["hello", "It is" + session.response.text]
    pipe.chat("and now?", session, SHORT)
    assert [message.role for message in session.messages] == ["user", "assistant"] * 2


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


def test_the_limits_of_a_prompt_are_settings(checkpoint: Path) -> None:
    with pipeline(checkpoint, device="cpu", max_prompt_tokens=300, max_prompt_chars=40) as pipe:
        many = [*[image_part(RED)] * 80, "What?"]
        with pytest.raises(ContextLengthError, match="allows 300"):
            pipe([user(*many)], SHORT)
        assert pipe.encoder_stats().num_forwards == 0
        with pytest.raises(PromptError, match="have 41 characters, and max_prompt_chars allows 40"):
            pipe("x" * 41, SHORT)
        good, bad = pipe(["Hi", "x" * 41], SHORT)
        assert good.generate_token_len > 0
        assert isinstance(bad.error, PromptError)


def test_a_limit_above_the_context_leaves_the_context(checkpoint: Path) -> None:
    with (
        pipeline(checkpoint, device="cpu", max_prompt_tokens=10**6) as pipe,
        pytest.raises(ContextLengthError, match="context length is 512"),
    ):
        pipe("x" * 3000, SHORT)


def test_an_invalid_limit_is_rejected_before_the_model_is_loaded() -> None:
    with pytest.raises(OptionError, match="max_prompt_chars must be a positive integer"):
        pipeline("no-such-model", max_prompt_chars=0)


def test_a_prompt_that_is_too_long_is_rejected_before_its_images_are_encoded(
    fresh: Pipeline,
) -> None:
    with pytest.raises(ContextLengthError, match="shorten the text"):
        fresh(("x" * 3000, RED), SHORT)
    with pytest.raises(ContextLengthError, match="fewer images"):
        fresh(("hello", [RED] * 200), SHORT)
    assert fresh.encoder_stats().num_forwards == 0
    fresh(("hello", RED), SHORT)
    fresh(("hello again", RED), SHORT)
    assert fresh.encoder_stats() == EncoderStats(
        num_images=203, num_cache_hits=1, num_forwards=1, num_encoded=1, num_tiles=1
    )


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


# -- streams


def test_chunks_join_to_the_response(pipe: Pipeline) -> None:
    whole = pipe(("hello", RED), SHORT)
    chunks = list(pipe.stream_infer(("hello", RED), SHORT))
    assert join(chunks) == (whole.text, whole.token_ids)
    assert [chunk.generate_token_len for chunk in chunks] == list(range(1, 7))
    assert {chunk.input_token_len for chunk in chunks} == {whole.input_token_len}
    reasons = [chunk.finish_reason for chunk in chunks]
    assert reasons == [None] * 5 + ["length"]


def test_chunks_of_a_list_join_to_its_responses(pipe: Pipeline) -> None:
    prompts: list[Any] = ["one", ("two", RED), ("three", "/absent.png"), "four"]
    whole = pipe(prompts, SHORT)
    chunks = list(pipe.stream_infer(prompts, SHORT))
    for index in (0, 1, 3):
        assert join(chunks, index) == (whole[index].text, whole[index].token_ids)
    (bad,) = [chunk for chunk in chunks if chunk.index == 2]
    assert bad.finish_reason == "error"
    assert isinstance(bad.error, ImageError)


def test_a_stream_may_be_abandoned(pipe: Pipeline) -> None:
    several: list[Any] = ["one", "two"]
    for prompts in ("hello", several):
        for _ in pipe.stream_infer(prompts, {"max_new_tokens": 400}):
            break
    assert pipe("hello", SHORT).finish_reason == "length"


def test_a_stream_raises_errors(pipe: Pipeline) -> None:
    with pytest.raises(ImageError, match="absent"):
        list(pipe.stream_infer(("a", "/absent.png"), SHORT))
    with pytest.raises(OptionError, match="beams"):
        list(pipe.stream_infer("a", {"beams": 1}))


# -- chat


def test_a_second_request_has_the_history_of_the_first(pipe: Pipeline) -> None:
    session = pipe.chat(("hello", RED), gen_config=SHORT)
    assert session.response == pipe(("hello", RED), SHORT)
    assert session.response is not None
    first = session.response.text
    assert pipe.chat("and now?", session, SHORT) is session
    explicit = pipe(
        [user(image_part(RED), "hello"), {"role": "assistant", "content": first}, user("and now?")],
        SHORT,
    )
    assert session.response.token_ids == explicit.token_ids
    assert session.response.input_token_len == explicit.input_token_len
    assert session.response.text != pipe("and now?", SHORT).text
    roles = [message.role for message in session.messages]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert session.messages[3].text == session.response.text


def test_a_later_request_may_have_an_image(pipe: Pipeline) -> None:
    session = pipe.chat(("hello", RED), gen_config=SHORT)
    assert session.response is not None
    history = [
        user(image_part(RED), "hello"),
        {"role": "assistant", "content": session.response.text},
    ]
    pipe.chat(("this?", BLUE), session, SHORT)
    assert session.response == pipe([*history, user(image_part(BLUE), "this?")], SHORT)


def test_an_error_does_not_change_the_session(pipe: Pipeline) -> None:
    session = pipe.chat("hello", gen_config=SHORT)
    conversation, response = session.conversation, session.response
    with pytest.raises(ImageError):
        pipe.chat(("look", "/absent.png"), session, SHORT)
    with pytest.raises(OptionError):
        pipe.chat("again", session, {"beams": 1})
    assert (session.conversation, session.response) == (conversation, response)
    assert pipe.chat("again", session, SHORT).response is not None


def test_a_stream_updates_the_session_at_its_end(pipe: Pipeline) -> None:
    expected = pipe.chat(("hello", RED), gen_config=SHORT)
    session = Session()
    chunks = []
    for chunk in pipe.stream_chat(("hello", RED), session, SHORT):
        assert (session.messages == ()) == (chunk.finish_reason is None)
        chunks.append(chunk)
    assert session == expected
    assert expected.response is not None
    assert join(chunks) == (expected.response.text, expected.response.token_ids)
    for _ in pipe.stream_chat("more", session, SHORT):
        break
    assert session == expected


# -- from another event loop


def test_a_session_is_updated_before_the_last_chunk_is_returned(pipe: Pipeline) -> None:
    session = Session()
    for chunk in pipe.stream_chat("hello", session, SHORT):
        if chunk.finish_reason is not None:
            break
    assert [message.role for message in session.messages] == ["user", "assistant"]
    assert session.response is not None
    assert session.response.text == pipe("hello", SHORT).text


def test_the_asynchronous_methods_give_the_same_responses(pipe: Pipeline) -> None:
    expected = pipe(("hello", RED), SHORT)
    prompts: list[Any] = ["one", ("two", RED)]
    several = pipe(prompts, SHORT)

    async def body() -> None:
        assert await pipe.ainfer(("hello", RED), SHORT) == expected
        assert await pipe.ainfer(prompts, SHORT) == several
        chunks = [chunk async for chunk in pipe.astream_infer(("hello", RED), SHORT)]
        assert join(chunks) == (expected.text, expected.token_ids)
        session = await pipe.achat(("hello", RED), gen_config=SHORT)
        assert session.response == expected
        streamed = Session()
        async for _ in pipe.astream_chat(("hello", RED), streamed, SHORT):
            pass
        assert streamed == session
        with pytest.raises(ImageError):
            await pipe.ainfer(("a", "/absent.png"), SHORT)

    asyncio.run(body())


def test_a_coroutine_on_the_loop_of_the_pipeline_may_use_its_methods(pipe: Pipeline) -> None:
    expected = pipe(("hello", RED), SHORT)

    async def body() -> str:
        assert await pipe.ainfer(("hello", RED), SHORT) == expected
        chunks = [chunk async for chunk in pipe.astream_infer(("hello", RED), SHORT)]
        assert join(chunks) == (expected.text, expected.token_ids)
        return threading.current_thread().name

    assert pipe.run(body()) == "vlcore-pipeline"


def test_a_coroutine_on_the_loop_of_the_pipeline_cannot_close_it(pipe: Pipeline) -> None:
    async def body() -> None:
        with pytest.raises(RuntimeError, match="close the pipeline elsewhere"):
            pipe.close()
        with pytest.raises(RuntimeError, match="close the pipeline elsewhere"):
            await pipe.aclose()
        assert (await pipe.ainfer("hello", SHORT)).generate_token_len == 6

    pipe.run(body())
    assert pipe("hello", SHORT).generate_token_len == 6


def test_requests_of_many_callers_run_concurrently(pipe: Pipeline) -> None:
    expected = [pipe((f"question {i}", RED), SHORT).text for i in range(6)]

    async def body() -> None:
        requests = (pipe.ainfer((f"question {i}", RED), SHORT) for i in range(6))
        assert [response.text for response in await asyncio.gather(*requests)] == expected

    asyncio.run(body())


def test_a_cancelled_request_does_not_affect_the_pipeline(pipe: Pipeline) -> None:
    async def body() -> None:
        with held(pipe.engine, 4) as hold:
            endless = {"max_new_tokens": 400, "ignore_eos": True}
            task = asyncio.create_task(pipe.ainfer("hello", endless))
            await asyncio.to_thread(hold.wait_until_held)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (await pipe.ainfer("hello", SHORT)).finish_reason == "length"

    asyncio.run(body())


# -- closing


def vlcore_threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith(("vlcore", "asyncio"))}


def test_a_closed_pipeline_has_no_threads_and_rejects_requests(checkpoint: Path) -> None:
    before = vlcore_threads()
    with pipeline(checkpoint, device="cpu") as pipe:
        pipe(("hello", RED), SHORT)
        assert vlcore_threads() > before
    assert vlcore_threads() <= before
    pipe.close()

    async def body() -> None:
        for call in (pipe.ainfer("a"), pipe.achat("a")):
            with pytest.raises(EngineClosedError, match="pipeline was closed"):
                await call
        with pytest.raises(EngineClosedError, match="pipeline was closed"):
            pipe.astream_infer("a")
        await pipe.aclose()

    for call in (pipe, pipe.stream_infer, pipe.chat):
        with pytest.raises(EngineClosedError, match="pipeline was closed"):
            call("a")
    with pytest.raises(EngineClosedError, match="pipeline was closed"):
        pipe.run(pipe.aclose())
    asyncio.run(body())


@pytest.mark.slow
@pytest.mark.parametrize(
    "end",
    [
        "",
        "next(pipe.stream_infer('a', {'max_new_tokens': 400}))",
        "stream = pipe.stream_infer('a', {'max_new_tokens': 400}); next(stream); del pipe",
    ],
)
def test_a_script_that_does_not_close_its_pipeline_ends_without_errors(
    checkpoint: Path, end: str
) -> None:
    script = f"""
import vlcore
from PIL import Image

pipe = vlcore.pipeline({str(checkpoint)!r}, device="cpu")
pipe(("hello", Image.new("RGB", (40, 40))), {{"max_new_tokens": 2}})
{end}
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    assert "Exception" not in ended.stderr


def test_an_asynchronous_context_closes_the_pipeline(checkpoint: Path) -> None:
    async def body() -> Pipeline:
        async with pipeline(checkpoint, device="cpu") as pipe:
            assert (await pipe.ainfer("a", SHORT)).generate_token_len == 6
        return pipe

    before = vlcore_threads()
    closed = asyncio.run(body())
    assert vlcore_threads() <= before
    with pytest.raises(EngineClosedError):
        closed("a")


def test_closing_ends_the_requests_of_other_threads(fresh: Pipeline) -> None:
    outcomes: list[Any] = []

    def call(prompts: Any) -> None:
        try:
            outcomes.append(fresh(prompts, {"max_new_tokens": 400, "ignore_eos": True}))
        except Exception as error:
            outcomes.append(error)

    stream = fresh.stream_infer("hello", {"max_new_tokens": 400, "ignore_eos": True})
    next(stream)
    prompts: list[Any] = ["hello", ["hello"] * 200]
    threads = [threading.Thread(target=call, args=(p,), daemon=True) for p in prompts]
    with held(fresh.engine):
        for thread in threads:
            thread.start()
        wait_for(lambda: fresh.engine.stats().num_waiting > 1)
        fresh.close()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
    with pytest.raises(EngineClosedError):
        list(stream)
    assert len(outcomes) == 2
    for outcome in outcomes:
        last = outcome[-1].error if isinstance(outcome, list) else outcome
        assert isinstance(last, EngineClosedError)


# -- options


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        (
            {"engine": "magic"},
            OptionError,
            "one of auto, turbomind, vllm, transformers; it is 'magic'",
        ),
        ({"engine_config": 3}, OptionError, "engine_config must be a Transf.* with engine='auto'"),
        ({"engine": "turbomind"}, EngineUnavailableError, "TurboMind cannot run .* here: "),
        ({"device": "tpu9000"}, OptionError, "device must be auto, cpu.*'tpu9000'"),
        ({"dtype": "int8"}, OptionError, "dtype must be a floating.*'int8'"),
        ({"dtype": "float99"}, OptionError, "dtype must be a floating.*'float99'"),
        ({"dtype": torch.int32}, OptionError, "dtype must be a floating"),
        ({"plugin": "absent-plugin"}, NoPluginError, "absent-plugin"),
        ({"chat_template": "absent"}, OptionError, "absent.*vicuna_v1"),
        ({"max_batch_size": 0}, OptionError, "max_batch_size must be an integer of at least 1"),
        ({"cache_bytes": -1}, OptionError, "cache_bytes must be an integer of at least 0"),
        ({"batch_size": 8}, OptionError, "unknown option.s. batch_size; .* max_batch_size, "),
        ({"vision_devices": []}, OptionError, r"vision_devices must be a list .* it is \[\]"),
        ({"vision_devices": "cpu"}, OptionError, "vision_devices must be a list .* it is 'cpu'"),
        ({"vision_devices": ["tpu"]}, OptionError, "device must be auto, cpu.*'tpu'"),
        ({"vision_device_map": "far"}, OptionError, "device_map must be one of auto, balanced"),
    ],
)
def test_an_invalid_option_is_an_error_and_leaves_no_thread(
    checkpoint: Path, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    before = vlcore_threads()
    with pytest.raises(error, match=reason):
        pipeline(checkpoint, **{"device": "cpu"} | options)
    assert vlcore_threads() <= before


def test_cuda_where_there_is_none_is_an_error(checkpoint: Path) -> None:
    with pytest.raises(EngineUnavailableError, match="sees no CUDA device: use device='cpu'"):
        pipeline(checkpoint, device="cuda")


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        pipeline(tmp_path / "absent")


def test_limits_and_settings_are_applied(checkpoint: Path) -> None:
    with pipeline(
        checkpoint,
        device="cpu",
        image_limits=ImageLimits(max_pixels=100),
        engine_config=TransformersEngineConfig(session_len=40),
        chat_template=RoleTemplate("U:", "", "A:"),
    ) as pipe:
        with pytest.raises(ImageLimitError, match="max_pixels=100"):
            pipe(("hello", RED), SHORT)
        assert pipe("hello").input_token_len < 15
        assert pipe("hello", {"ignore_eos": True}).finish_reason == "length"
        with pytest.raises(ContextLengthError, match="context length is 40"):
            pipe("hello " * 40)


def test_replicas_of_the_vision_model_give_the_same_responses(checkpoint: Path) -> None:
    images = [Image.new("RGB", (30, 20), (20 * number, 0, 0)) for number in range(12)]
    prompts = [("hello", image) for image in images]
    with pipeline(checkpoint, device="cpu", dtype="float32") as pipe:
        expected = [response.token_ids for response in pipe(prompts, SHORT)]
    with pipeline(
        checkpoint, device="cpu", dtype="float32", vision_devices=["cpu", "cpu"], max_batch_size=2
    ) as pipe:
        assert [response.token_ids for response in pipe(prompts, SHORT)] == expected
        assert pipe.encoder_stats().num_encoded == len(images)


def test_a_split_vision_model_gives_the_same_responses(checkpoint: Path) -> None:
    with pipeline(checkpoint, device="cpu", dtype="float32") as pipe:
        expected = pipe(("hello", RED), SHORT).token_ids
    with pipeline(
        checkpoint, device="cpu", dtype="float32", vision_max_memory={"cpu": "1GiB"}
    ) as pipe:
        assert pipe(("hello", RED), SHORT).token_ids == expected


def test_preprocessed_images_are_freed_before_the_response_is_generated(checkpoint: Path) -> None:
    with pipeline(checkpoint, device="cpu") as pipe:
        inputs: list[weakref.ref[Any]] = []
        model = pipe._runner.encoder.vision_model
        preprocess = model.preprocess

        def recorded(image: Image.Image, **options: Any) -> Any:
            inputs.append(weakref.ref(result := preprocess(image, **options)))
            return result

        model.preprocess = recorded  # type: ignore[method-assign]
        with held(pipe.engine, 2):
            chunks = pipe.stream_infer(("hello", RED), SHORT)
            next(chunks)
            wait_for(lambda: gc.collect() >= 0 and [reference() for reference in inputs] == [None])
            chunks.close()


def test_a_named_template_is_used(checkpoint: Path) -> None:
    with pipeline(checkpoint, device="cpu", chat_template="chatml_direct") as pipe:
        assert pipe.template.render([{"role": "user", "content": "hello"}]).startswith(
            "<|im_start|>"
        )


def test_half_precision_generates(checkpoint: Path) -> None:
    with pipeline(checkpoint, device="cpu", dtype="bfloat16") as pipe:
        assert pipe(("hello", RED), SHORT).generate_token_len == 6


def test_an_expansion_of_the_wrong_length_is_a_contract_error(checkpoint: Path) -> None:
    class Wrong(RoleTemplate):
        def expand(self, layout: Any, num_rows: int) -> tuple[Text | Control, ...]:
            return ()

    with (
        pipeline(checkpoint, device="cpu", chat_template=Wrong("U:", "", "A:")) as pipe,
        pytest.raises(PluginContractError, match=f"image 0, which has {NUM_ROWS}"),
    ):
        pipe(("hello", RED), SHORT)


def test_a_session_has_message_values(pipe: Pipeline) -> None:
    session = pipe.chat("hello", gen_config=SHORT)
    assert session.messages[0] == Message("user", (Text("hello"),))


class SlowServer:
    """Sends one byte of an image, and the rest once it is released."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"x")
                self.wfile.flush()
                outer.requested.set()
                outer.released.wait(TIMEOUT_S)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/image.png"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_text_does_not_wait_for_slow_images(fresh: Pipeline) -> None:
    with SlowServer() as server:
        slow: list[Any] = []
        prompts = [("a", server.url)] * 12
        thread = threading.Thread(target=lambda: slow.extend(fresh(prompts, SHORT)))
        thread.start()
        assert server.requested.wait(TIMEOUT_S)
        assert fresh("hello", SHORT).text
        assert not slow
        server.released.set()
        thread.join()
    assert {response.finish_reason for response in slow} == {"error"}


def test_closing_does_not_wait_for_slow_images_and_ends_all_requests(
    checkpoint: Path,
) -> None:
    outcomes: list[str] = []

    def consume(stream: Iterator[Response]) -> None:
        try:
            for _ in stream:
                pass
        except EngineClosedError:
            outcomes.append("closed")

    with SlowServer() as server:
        pipe = pipeline(checkpoint, device="cpu")
        endless = {"max_new_tokens": 450, "ignore_eos": True}
        started = pipe.stream_infer("hello", endless)
        with held(pipe.engine, 4):
            next(started)
            threads = [
                threading.Thread(target=consume, args=(stream,))
                for stream in (pipe.stream_infer(("a", server.url)), started)
            ]
            threads[0].start()
            assert server.requested.wait(TIMEOUT_S)
            pipe.close()
        threads[1].start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert outcomes == ["closed", "closed"]


def test_a_session_keeps_its_images(pipe: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    RED.save(path)
    session = pipe.chat(("What is this?", path), gen_config=SHORT)
    path.unlink()
    session = pipe.chat("Are you sure?", session, SHORT)
    assert len(session.messages) == 4


def test_a_session_has_one_request_at_a_time(pipe: Pipeline) -> None:
    session = Session()
    first = pipe.stream_chat("hello", session, {"max_new_tokens": 400, "ignore_eos": True})
    next(first)
    with pytest.raises(PromptError, match="in use by another request"):
        pipe.chat("and?", session, SHORT)
    first.close()
    assert session.messages == ()
    assert len(pipe.chat("and?", session, SHORT).messages) == 2


def test_an_unreferenced_pipeline_is_freed_after_its_streams(checkpoint: Path) -> None:
    before = set(threading.enumerate())
    stream = pipeline(checkpoint, device="cpu").stream_infer("hello", SHORT)
    gc.collect()
    assert sum(len(chunk.token_ids) for chunk in stream) > 0
    del stream
    gc.collect()
    wait_for(lambda: set(threading.enumerate()) <= before)


def test_an_unreferenced_pipeline_is_freed_after_its_asynchronous_streams(
    checkpoint: Path,
) -> None:
    before = vlcore_threads()

    async def body() -> None:
        stream = pipeline(checkpoint, device="cpu").astream_infer("hello", SHORT)
        gc.collect()
        assert sum([len(chunk.token_ids) async for chunk in stream]) == 6

    asyncio.run(body())
    gc.collect()
    wait_for(lambda: vlcore_threads() <= before)


def test_invalid_unicode_is_rejected(pipe: Pipeline) -> None:
    with pytest.raises(PromptError, match="not valid Unicode"):
        pipe("a\ud800b", SHORT)

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from checkpoints import NUM_ROWS, write_llava
from PIL import Image

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
from vlcore.inference.factory import pipeline
from vlcore.inference.pipeline import Pipeline
from vlcore.inference.response import Response, Session
from vlcore.media.policy import ImageLimits
from vlcore.prompts.chat_template import ChatTemplate, RoleTemplate
from vlcore.prompts.messages import Control, Message, PromptPart, Text
from vlcore.vision.stats import EncoderStats

SHORT = GenerationConfig(max_new_tokens=6)
RED = Image.new("RGB", (50, 30), "red")
BLUE = Image.new("RGB", (30, 50), "blue")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("pipeline") / "llava")


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> Iterator[Pipeline]:
    with pipeline(checkpoint, device="cpu") as made:
        yield made


@pytest.fixture
def fresh(checkpoint: Path) -> Iterator[Pipeline]:
    """A pipeline whose counts are zero, or that a test closes."""
    with pipeline(checkpoint, device="cpu") as made:
        yield made


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def user(*content: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in content]
    return {"role": "user", "content": parts}


def picture(image: Any) -> dict[str, Any]:
    return {"type": "image", "image": image}


def join(pieces: list[Response], index: int = 0) -> tuple[str, tuple[int, ...]]:
    own = [piece for piece in pieces if piece.index == index]
    text = "".join(piece.text for piece in own)
    return text, tuple(token_id for piece in own for token_id in piece.token_ids)


# -- several answers, log-probabilities and logits

SAMPLED = GenerationConfig(max_new_tokens=6, n=3, do_sample=True, random_seed=1, temperature=3.0)


def test_n_answers_come_with_the_first(pipe: Pipeline) -> None:
    response = pipe(("hello", RED), SAMPLED)
    assert [answer.choice for answer in response.choices] == [0, 1, 2]
    assert len({answer.token_ids for answer in response.choices}) == 3
    assert response.token_ids == response.choices[0].token_ids
    first, second = pipe([("hello", RED), "hello"], SAMPLED)
    assert first == response
    assert (second.index, len(second.choices)) == (1, 3)


def test_pieces_of_n_answers_are_told_apart(pipe: Pipeline) -> None:
    expected = pipe(["hello", ("hello", RED)], SAMPLED)
    for prompts in (["hello", ("hello", RED)], "hello"):
        pieces = list(pipe.stream_infer(prompts, SAMPLED))
        for index in range(len(prompts) if isinstance(prompts, list) else 1):
            for answer in expected[index].choices:
                own = [p for p in pieces if (p.index, p.choice) == (index, answer.choice)]
                assert "".join(piece.text for piece in own) == answer.text
                assert [bool(piece.finish_reason) for piece in own].count(True) == 1
                assert own[-1].generate_token_len == answer.generate_token_len


def test_a_bad_prompt_among_several_ends_a_stream_of_n_answers(pipe: Pipeline) -> None:
    pieces = list(pipe.stream_infer(["hello", ("hello", "missing.png")], SAMPLED))
    assert [p.index for p in pieces if p.finish_reason == "error"] == [1]
    assert sum(p.finish_reason == "length" for p in pieces) == 3


def test_a_session_goes_on_with_one_answer(pipe: Pipeline) -> None:
    with pytest.raises(OptionError, match="n must be 1; it is 3"):
        pipe.chat("hello", None, SAMPLED)


def test_logprobs_and_logits_come_with_the_answer(pipe: Pipeline) -> None:
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
        assert len(logprobs) == 2  # greedy: the token is the likeliest
    assert int(response.prompt_logits[-1].argmax()) == response.token_ids[0]
    assert pipe(("hello", RED), SHORT).logits is None


# -- one prompt


def test_an_answer_says_what_it_took(pipe: Pipeline) -> None:
    response = pipe(("hello", RED), SHORT)
    assert isinstance(response, Response)
    assert response.text
    assert len(response.token_ids) == response.generate_token_len == 6
    assert (response.finish_reason, response.index, response.error) == ("length", 0, None)
    assert response.raise_for_error() is response
    template_tokens = pipe("hello", SHORT).input_token_len
    assert response.input_token_len > template_tokens + NUM_ROWS - 1


def test_every_form_of_a_prompt_gives_the_same_answer(pipe: Pipeline, tmp_path: Path) -> None:
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
        [user(picture(RED), "hello")],
        [user({"type": "image_url", "image_url": {"url": url}}, "hello")],
        [user({"type": "image_url", "image_url": file.as_uri()}, "hello")],
    ]
    for response in pipe(prompts, SHORT):
        assert response.raise_for_error().token_ids == expected.token_ids
        assert response.input_token_len == expected.input_token_len
    assert pipe(("hello", BLUE), SHORT).text != expected.text


def test_images_count_in_their_order(pipe: Pipeline) -> None:
    both = pipe(("hello", [RED, BLUE]), SHORT)
    assert both.input_token_len > pipe(("hello", RED), SHORT).input_token_len + NUM_ROWS - 1
    assert pipe(("hello", [BLUE, RED]), SHORT).text != both.text
    assert pipe([user(picture(RED), picture(BLUE), "hello")], SHORT).text == both.text
    assert pipe([user(picture(RED), "hello", picture(BLUE))], SHORT).text != both.text


def test_generation_options_come_as_a_mapping_too(pipe: Pipeline) -> None:
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
        (5, PromptError, "a prompt is a text"),
        (("a", RED, RED), PromptError, "has 3 items"),
        ([{"role": "robot", "content": "a"}], PromptError, "role 'robot'"),
        (("a", "/absent/red.png"), ImageError, "no file '/absent/red.png'"),
        (("a", b"not a picture"), ImageError, "is not a picture"),
        (("a", Image.new("RGB", (0, 4))), ImageError, "no pixels"),
        ([user(picture(RED) | {"zoom": 2}, "a")], OptionError, r"image option\(s\) zoom"),
        ("x" * 3000, ContextLengthError, "the context holds 512"),
    ],
)
def test_a_prompt_that_cannot_be_answered_raises(
    pipe: Pipeline, prompt: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        pipe(prompt, SHORT)
    (response,) = pipe([prompt], SHORT)
    assert isinstance(response.error, error)
    assert pipe("hello", SHORT).finish_reason == "length"


def test_typed_image_and_control_tokens_stay_text(pipe: Pipeline) -> None:
    typed = pipe("<image> </s>", SHORT)
    assert typed.finish_reason in ("stop", "length")
    beside = pipe(("<image> </s>", RED), SHORT)
    assert beside.input_token_len > typed.input_token_len + NUM_ROWS - 1


def test_a_template_that_loses_an_image_is_an_error(checkpoint: Path) -> None:
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
        many = [*[picture(RED)] * 80, "What?"]
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
        pytest.raises(ContextLengthError, match="the context holds 512"),
    ):
        pipe("x" * 3000, SHORT)


def test_a_limit_out_of_range_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(OptionError, match="max_prompt_chars must be a positive integer"):
        pipeline("no-such-model", max_prompt_chars=0)


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_encoded(fresh: Pipeline) -> None:
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


# -- hostile checkpoints and pictures


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
def test_a_picture_of_an_odd_shape_is_answered_beside_others(
    pipe: Pipeline, size: tuple[int, int]
) -> None:
    alone = pipe(("hello", RED), SHORT)
    odd, good = pipe([("hello", Image.new("RGB", size, "red")), ("hello", RED)], SHORT)
    assert odd.error is None
    assert odd.generate_token_len > 0
    assert good.token_ids == alone.token_ids


def test_hostile_text_in_one_request_leaves_the_others(pipe: Pipeline) -> None:
    alone = pipe(("hello", RED), SHORT)
    prompts: list[Any] = ["a\ud800", ("hello", RED), "<image></s>", ["no", "prompt", 3]]
    surrogate, good, typed, malformed = pipe(prompts, SHORT)
    assert isinstance(surrogate.error, PromptError)
    assert isinstance(malformed.error, PromptError)
    assert typed.error is None
    assert good.token_ids == alone.token_ids


# -- a list of prompts


def test_a_list_is_answered_in_order_and_a_bad_prompt_fails_alone(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    prompts: list[Any] = ["one", ("two", RED), ("three", "/absent.png"), ("four", [BLUE, RED]), 5]
    alone = [pipe(prompts[i], SHORT) for i in (0, 1, 3)]
    responses = pipe(prompts, SHORT)
    assert [response.index for response in responses] == [0, 1, 2, 3, 4]
    assert [responses[i].token_ids for i in (0, 1, 3)] == [one.token_ids for one in alone]
    assert [responses[i].text for i in (0, 1, 3)] == [one.text for one in alone]
    for index, error in ((2, ImageError), (4, PromptError)):
        bad = responses[index]
        assert (bad.finish_reason, bad.text, bad.token_ids) == ("error", "", ())
        with pytest.raises(error):
            bad.raise_for_error()
    assert "prompt 2 was not answered" in caplog.text


def test_an_empty_list_has_no_answers(pipe: Pipeline) -> None:
    assert pipe([], SHORT) == []
    assert list(pipe.stream_infer([], SHORT)) == []


def test_a_long_list_is_answered_whole(pipe: Pipeline) -> None:
    prompts: list[Any] = [f"question {number}" for number in range(70)]
    responses = pipe(prompts, {"max_new_tokens": 1})
    assert [response.index for response in responses] == list(range(70))
    assert {response.generate_token_len for response in responses} == {1}


def test_a_progress_bar_is_shown_when_asked_for(
    pipe: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts: list[Any] = ["a", "b", ("c", "/absent.png")]
    pipe(prompts, SHORT)
    assert "prompt" not in capsys.readouterr().err.replace("prompt 2 was not", "")
    pipe(prompts, SHORT, use_tqdm=True)
    assert "3/3" in capsys.readouterr().err


# -- streams


def test_pieces_join_to_the_answer(pipe: Pipeline) -> None:
    whole = pipe(("hello", RED), SHORT)
    pieces = list(pipe.stream_infer(("hello", RED), SHORT))
    assert join(pieces) == (whole.text, whole.token_ids)
    assert [piece.generate_token_len for piece in pieces] == list(range(1, 7))
    assert {piece.input_token_len for piece in pieces} == {whole.input_token_len}
    reasons = [piece.finish_reason for piece in pieces]
    assert reasons == [None] * 5 + ["length"]


def test_pieces_of_a_list_join_to_its_answers(pipe: Pipeline) -> None:
    prompts: list[Any] = ["one", ("two", RED), ("three", "/absent.png"), "four"]
    whole = pipe(prompts, SHORT)
    pieces = list(pipe.stream_infer(prompts, SHORT))
    for index in (0, 1, 3):
        assert join(pieces, index) == (whole[index].text, whole[index].token_ids)
    (bad,) = [piece for piece in pieces if piece.index == 2]
    assert bad.finish_reason == "error"
    assert isinstance(bad.error, ImageError)


def test_a_stream_may_be_left(pipe: Pipeline) -> None:
    several: list[Any] = ["one", "two"]
    for prompts in ("hello", several):
        for _ in pipe.stream_infer(prompts, {"max_new_tokens": 400}):
            break
    assert pipe("hello", SHORT).finish_reason == "length"


def test_errors_travel_through_a_stream(pipe: Pipeline) -> None:
    with pytest.raises(ImageError, match="absent"):
        list(pipe.stream_infer(("a", "/absent.png"), SHORT))
    with pytest.raises(OptionError, match="beams"):
        list(pipe.stream_infer("a", {"beams": 1}))


# -- chat


def test_a_second_turn_sees_the_first(pipe: Pipeline) -> None:
    session = pipe.chat(("hello", RED), gen_config=SHORT)
    assert session.response == pipe(("hello", RED), SHORT)
    assert session.response is not None
    first = session.response.text
    assert pipe.chat("and now?", session, SHORT) is session
    explicit = pipe(
        [user(picture(RED), "hello"), {"role": "assistant", "content": first}, user("and now?")],
        SHORT,
    )
    assert session.response.token_ids == explicit.token_ids
    assert session.response.input_token_len == explicit.input_token_len
    assert session.response.text != pipe("and now?", SHORT).text
    roles = [message.role for message in session.messages]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert session.messages[3].text == session.response.text


def test_a_later_turn_may_bring_an_image(pipe: Pipeline) -> None:
    session = pipe.chat(("hello", RED), gen_config=SHORT)
    assert session.response is not None
    history = [user(picture(RED), "hello"), {"role": "assistant", "content": session.response.text}]
    pipe.chat(("this?", BLUE), session, SHORT)
    assert session.response == pipe([*history, user(picture(BLUE), "this?")], SHORT)


def test_an_error_leaves_the_session_as_it_was(pipe: Pipeline) -> None:
    session = pipe.chat("hello", gen_config=SHORT)
    conversation, response = session.conversation, session.response
    with pytest.raises(ImageError):
        pipe.chat(("look", "/absent.png"), session, SHORT)
    with pytest.raises(OptionError):
        pipe.chat("again", session, {"beams": 1})
    assert (session.conversation, session.response) == (conversation, response)
    assert pipe.chat("again", session, SHORT).response is not None


def test_a_stream_grows_the_session_at_its_end(pipe: Pipeline) -> None:
    expected = pipe.chat(("hello", RED), gen_config=SHORT)
    session = Session()
    pieces = []
    for piece in pipe.stream_chat(("hello", RED), session, SHORT):
        assert (session.messages == ()) == (piece.finish_reason is None)
        pieces.append(piece)
    assert session == expected
    assert expected.response is not None
    assert join(pieces) == (expected.response.text, expected.response.token_ids)
    for _ in pipe.stream_chat("more", session, SHORT):
        break
    assert session == expected


# -- from another loop


def test_a_session_has_its_turn_once_the_last_piece_is_there(pipe: Pipeline) -> None:
    session = Session()
    for piece in pipe.stream_chat("hello", session, SHORT):
        if piece.finish_reason is not None:
            break
    assert [message.role for message in session.messages] == ["user", "assistant"]
    assert session.response is not None
    assert session.response.text == pipe("hello", SHORT).text


def test_the_asynchronous_twins_give_the_same(pipe: Pipeline) -> None:
    expected = pipe(("hello", RED), SHORT)
    prompts: list[Any] = ["one", ("two", RED)]
    several = pipe(prompts, SHORT)

    async def body() -> None:
        assert await pipe.ainfer(("hello", RED), SHORT) == expected
        assert await pipe.ainfer(prompts, SHORT) == several
        pieces = [piece async for piece in pipe.astream_infer(("hello", RED), SHORT)]
        assert join(pieces) == (expected.text, expected.token_ids)
        session = await pipe.achat(("hello", RED), gen_config=SHORT)
        assert session.response == expected
        streamed = Session()
        async for _ in pipe.astream_chat(("hello", RED), streamed, SHORT):
            pass
        assert streamed == session
        with pytest.raises(ImageError):
            await pipe.ainfer(("a", "/absent.png"), SHORT)

    asyncio.run(body())


def test_a_coroutine_on_the_loop_of_the_pipeline_may_use_all_of_it(pipe: Pipeline) -> None:
    expected = pipe(("hello", RED), SHORT)

    async def body() -> str:
        assert await pipe.ainfer(("hello", RED), SHORT) == expected
        pieces = [piece async for piece in pipe.astream_infer(("hello", RED), SHORT)]
        assert join(pieces) == (expected.text, expected.token_ids)
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


def test_requests_of_many_callers_run_beside_each_other(pipe: Pipeline) -> None:
    expected = [pipe((f"question {i}", RED), SHORT).text for i in range(6)]

    async def body() -> None:
        asked = (pipe.ainfer((f"question {i}", RED), SHORT) for i in range(6))
        assert [response.text for response in await asyncio.gather(*asked)] == expected

    asyncio.run(body())


def test_a_cancelled_request_leaves_the_pipeline_working(pipe: Pipeline) -> None:
    async def body() -> None:
        task = asyncio.create_task(pipe.ainfer("hello", {"max_new_tokens": 400}))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await pipe.ainfer("hello", SHORT)).finish_reason == "length"

    asyncio.run(body())


# -- closing


def vlcore_threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith(("vlcore", "asyncio"))}


def test_a_closed_pipeline_leaves_no_thread_and_refuses_work(checkpoint: Path) -> None:
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
@pytest.mark.parametrize("end", ["", "next(pipe.stream_infer('a', {'max_new_tokens': 400}))"])
def test_a_script_that_does_not_close_its_pipeline_ends_quietly(checkpoint: Path, end: str) -> None:
    script = f"""
import vlcore
from PIL import Image

pipe = vlcore.pipeline({str(checkpoint)!r}, device="cpu")
pipe(("hello", Image.new("RGB", (40, 40))), {{"max_new_tokens": 2}})
{end}
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert "Exception" not in ended.stderr


def test_an_asynchronous_context_closes_too(checkpoint: Path) -> None:
    async def body() -> Pipeline:
        async with pipeline(checkpoint, device="cpu") as pipe:
            assert (await pipe.ainfer("a", SHORT)).generate_token_len == 6
        return pipe

    before = vlcore_threads()
    closed = asyncio.run(body())
    assert vlcore_threads() <= before
    with pytest.raises(EngineClosedError):
        closed("a")


def test_closing_ends_what_other_threads_wait_for(fresh: Pipeline) -> None:
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
    for thread in threads:
        thread.start()
    next(stream)
    fresh.close()
    for thread in threads:
        thread.join(30)
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
        ({"engine": "magic"}, OptionError, "one of auto, turbomind, transformers; it is 'magic'"),
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
def test_an_option_that_is_wrong_is_named_and_no_thread_is_left(
    checkpoint: Path, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    before = vlcore_threads()
    with pytest.raises(error, match=reason):
        pipeline(checkpoint, **{"device": "cpu"} | options)
    assert vlcore_threads() <= before


def test_cuda_where_there_is_none_is_an_error(checkpoint: Path) -> None:
    with pytest.raises(EngineUnavailableError, match="sees no CUDA device: use device='cpu'"):
        pipeline(checkpoint, device="cuda")


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        pipeline(tmp_path / "absent")


def test_limits_and_settings_reach_their_stages(checkpoint: Path) -> None:
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
        with pytest.raises(ContextLengthError, match="holds 40"):
            pipe("hello " * 40)


def test_replicas_of_the_vision_model_answer_alike(checkpoint: Path) -> None:
    pictures = [Image.new("RGB", (30, 20), (20 * number, 0, 0)) for number in range(12)]
    prompts = [("hello", picture) for picture in pictures]
    with pipeline(checkpoint, device="cpu") as pipe:
        expected = [response.token_ids for response in pipe(prompts, SHORT)]
    with pipeline(
        checkpoint, device="cpu", vision_devices=["cpu", "cpu"], max_batch_size=2
    ) as pipe:
        assert [response.token_ids for response in pipe(prompts, SHORT)] == expected
        assert pipe.encoder_stats().num_encoded == len(pictures)


def test_a_spread_vision_model_answers_alike(checkpoint: Path) -> None:
    with pipeline(checkpoint, device="cpu") as pipe:
        expected = pipe(("hello", RED), SHORT).token_ids
    with pipeline(checkpoint, device="cpu", vision_max_memory={"cpu": "1GiB"}) as pipe:
        assert pipe(("hello", RED), SHORT).token_ids == expected


def test_preprocessed_pictures_are_gone_while_the_answer_is_written(checkpoint: Path) -> None:
    with pipeline(checkpoint, device="cpu") as pipe:
        inputs: list[weakref.ref[Any]] = []
        model = pipe._road.encoder.vision_model
        preprocess = model.preprocess

        def remembered(image: Image.Image, **options: Any) -> Any:
            inputs.append(weakref.ref(result := preprocess(image, **options)))
            return result

        model.preprocess = remembered  # type: ignore[method-assign]
        pieces = pipe.stream_infer(("hello", RED), SHORT)
        next(pieces)
        gc.collect()
        assert [reference() for reference in inputs] == [None]
        pieces.close()


def test_a_named_template_is_used(checkpoint: Path) -> None:
    with pipeline(checkpoint, device="cpu", chat_template="chatml_direct") as pipe:
        assert pipe.template.render([{"role": "user", "content": "hello"}]).startswith(
            "<|im_start|>"
        )


def test_half_precision_answers(checkpoint: Path) -> None:
    with pipeline(checkpoint, device="cpu", dtype="bfloat16") as pipe:
        assert pipe(("hello", RED), SHORT).generate_token_len == 6


def test_an_expansion_that_does_not_fit_its_image_is_a_contract_error(checkpoint: Path) -> None:
    class Wrong(RoleTemplate):
        def expand(self, layout: Any, num_rows: int) -> tuple[Text | Control, ...]:
            return ()

    with (
        pipeline(checkpoint, device="cpu", chat_template=Wrong("U:", "", "A:")) as pipe,
        pytest.raises(PluginContractError, match=f"image 0, which has {NUM_ROWS}"),
    ):
        pipe(("hello", RED), SHORT)


def test_messages_may_be_ready_made(pipe: Pipeline) -> None:
    session = pipe.chat("hello", gen_config=SHORT)
    assert session.messages[0] == Message("user", (Text("hello"),))


class SlowServer:
    """Sends one byte of a picture, and the rest when it is let go."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"x")
                self.wfile.flush()
                outer.asked.set()
                outer.released.wait(10)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/picture.png"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_text_does_not_wait_for_slow_pictures(fresh: Pipeline) -> None:
    with SlowServer() as server:
        slow: list[Any] = []
        prompts = [("a", server.url)] * 12
        thread = threading.Thread(target=lambda: slow.extend(fresh(prompts, SHORT)))
        thread.start()
        assert server.asked.wait(10)
        assert fresh("hello", SHORT).text
        assert not slow
        server.released.set()
        thread.join()
    assert {answer.finish_reason for answer in slow} == {"error"}


def test_closing_does_not_wait_for_slow_pictures_and_leaves_nobody_waiting(
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
        next(started)
        threads = [
            threading.Thread(target=consume, args=(stream,))
            for stream in (pipe.stream_infer(("a", server.url)), started)
        ]
        threads[0].start()
        assert server.asked.wait(10)
        pipe.close()
        threads[1].start()
        for thread in threads:
            thread.join(10)
        assert outcomes == ["closed", "closed"]


def test_a_session_keeps_its_pictures(pipe: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    RED.save(path)
    session = pipe.chat(("What is this?", path), gen_config=SHORT)
    path.unlink()
    session = pipe.chat("Are you sure?", session, SHORT)
    assert len(session.messages) == 4


def test_a_session_answers_one_question_at_a_time(pipe: Pipeline) -> None:
    session = Session()
    first = pipe.stream_chat("hello", session, {"max_new_tokens": 400, "ignore_eos": True})
    next(first)
    with pytest.raises(PromptError, match="still answering another question"):
        pipe.chat("and?", session, SHORT)
    first.close()
    assert session.messages == ()
    assert len(pipe.chat("and?", session, SHORT).messages) == 2


def test_a_pipeline_that_is_dropped_is_freed_but_not_before_its_streams(checkpoint: Path) -> None:
    before = set(threading.enumerate())
    stream = pipeline(checkpoint, device="cpu").stream_infer("hello", SHORT)
    gc.collect()
    assert sum(len(piece.token_ids) for piece in stream) > 0
    del stream
    gc.collect()
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


def test_text_that_is_no_unicode_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(PromptError, match="not valid Unicode"):
        pipe("a\ud800b", SHORT)

"""TurboMind on a GPU, compared with the embedded engine; run by ``make test-cuda``."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from large_heads import FAMILIES, write_checkpoint
from PIL import Image
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

import vlcore
from vlcore.engines.base import Engine, EngineOutput, EngineRequest, EngineStats
from vlcore.engines.generation import GenerationConfig
from vlcore.prompts.tokenization import TokenizedPrompt

if importlib.util.find_spec("lmdeploy") is None:
    pytest.skip("lmdeploy is not installed", allow_module_level=True)
if not torch.cuda.is_available():
    pytest.skip("torch sees no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.cuda

NUM_TOKENS = 64
ERRORS = {"float16": 0.02, "bfloat16": 0.15}
"""What a log-probability of these models may be off by in each dtype: some twenty of its steps at
the size of their logits."""
IMAGES = [Image.new("RGB", (60, 40), "red"), Image.new("RGB", (40, 50), "blue")]
PROMPTS: dict[str, Any] = {
    "no image": "Tell me more.",
    "one image": ("What is this?", IMAGES[0]),
    "two images": ("Compare them.", IMAGES),
}


class Watched(Engine):
    """An engine that keeps the requests that it is asked."""

    name = "watched"

    def __init__(self, engine: Engine) -> None:
        self.inner = engine
        self.hidden_size = engine.hidden_size
        self.vocab_size = engine.vocab_size
        self.context_length = engine.context_length
        self.asked: list[EngineRequest] = []

    def generate(self, request: EngineRequest) -> Any:
        self.asked.append(request)
        return self.inner.generate(request)

    async def close(self) -> None:
        await self.inner.close()

    def stats(self) -> EngineStats:
        return self.inner.stats()


@dataclass
class Pair:
    """One checkpoint on both engines of one device, in one dtype."""

    dtype: str
    turbomind: vlcore.Pipeline
    embedded: vlcore.Pipeline
    reference: vlcore.Pipeline
    """The embedded engine in float32."""


@pytest.fixture(scope="module", params=[(f, d) for f in FAMILIES for d in ERRORS], ids="-".join)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    from lmdeploy import TurbomindEngineConfig

    family, dtype = request.param
    directory = tmp_path_factory.mktemp("cuda") / family
    write_checkpoint(family, directory, getattr(torch, dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLCORE_CACHE", str(directory.parent / "cache"))
        embedded = vlcore.pipeline(directory, engine="transformers", device="cuda", dtype=dtype)
        reference = vlcore.pipeline(
            directory, engine="transformers", device="cuda", dtype="float32"
        )
        settings = TurbomindEngineConfig(
            dtype=dtype, cache_max_entry_count=0.1, max_batch_size=32, session_len=1024
        )
        turbomind = vlcore.pipeline(
            directory, engine="turbomind", device="cuda", dtype=dtype, engine_config=settings
        )
    with embedded, reference, turbomind:
        yield Pair(dtype, turbomind, embedded, reference)


def generate(engine: Engine, request: EngineRequest) -> list[EngineOutput]:
    async def body() -> list[EngineOutput]:
        async with aclosing(engine.generate(request)) as chunks:
            return [chunk async for chunk in chunks]

    return asyncio.run(asyncio.wait_for(body(), 300))


def requests_of(pipe: vlcore.Pipeline, prompt: Any, **options: Any) -> EngineRequest:
    """The request that a pipeline makes of a prompt."""
    watched = Watched(pipe.engine)
    runner = replace(pipe._runner, engine=watched)
    pipe._loop.run(runner.infer(prompt, GenerationConfig(max_new_tokens=1, **options)))
    return watched.asked[-1]


def prompt_logprobs(engine: Engine, request: EngineRequest) -> Tensor:
    """Log-probabilities after each token of a prompt, [tokens, vocab]."""
    first, *_ = generate(engine, request)
    assert first.prompt_logits is not None
    return first.prompt_logits.log_softmax(-1)


def forced(request: EngineRequest, answer: tuple[int, ...]) -> EngineRequest:
    """Ask for the logits of a prompt with an answer to it."""
    return EngineRequest(
        TokenizedPrompt((*request.prompt.token_ids, *answer), request.prompt.spans),
        request.rows,
        GenerationConfig(max_new_tokens=1, ignore_eos=True, output_logits="all"),
    )


@pytest.mark.parametrize("kind", PROMPTS)
def test_64_tokens_are_as_likely_as_on_the_embedded_engine(pair: Pair, kind: str) -> None:
    """Teacher-forced: both compute the logits of one text, the embedded engine's answer.

    What each is off by from the embedded engine in float32 is what its dtype rounds away.
    """
    asked = requests_of(pair.embedded, PROMPTS[kind])
    answer = generate(
        pair.embedded.engine,
        replace(asked, config=GenerationConfig(max_new_tokens=NUM_TOKENS, ignore_eos=True)),
    )
    token_ids = tuple(token_id for chunk in answer for token_id in chunk.token_ids)
    assert len(token_ids) == NUM_TOKENS
    start = len(asked.prompt.token_ids)
    whole = forced(asked, token_ids)
    expected, embedded, logprobs = (
        prompt_logprobs(pipe.engine, whole)[start - 1 : -1]
        for pipe in (pair.reference, pair.embedded, pair.turbomind)
    )
    assert logprobs.shape == expected.shape

    highest = expected.topk(2)
    own, error = (
        float((one - expected).gather(1, highest.indices).abs().max())
        for one in (embedded, logprobs)
    )
    print(f"{pair.dtype}, {kind}: off by {error:.4f} at most, the embedded engine by {own:.4f}")
    assert own <= 2 * ERRORS[pair.dtype]
    assert error <= 2 * own
    is_clear = highest.values[:, 0] - highest.values[:, 1] > 2 * error
    assert is_clear.any()
    same = logprobs.argmax(-1) == expected.argmax(-1)
    assert same[is_clear].all()


@pytest.mark.parametrize("kind", PROMPTS)
def test_greedy_tokens_are_the_most_likely_ones(pair: Pair, kind: str) -> None:
    """Each token that TurboMind takes is the embedded engine's most likely, but for ties."""
    options = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True}
    taken = pair.turbomind(PROMPTS[kind], options).token_ids
    assert len(taken) == NUM_TOKENS
    asked = requests_of(pair.embedded, PROMPTS[kind])
    start = len(asked.prompt.token_ids)
    expected = prompt_logprobs(pair.embedded.engine, forced(asked, taken))[start - 1 : -1]
    lost = expected.amax(-1) - expected.gather(1, torch.tensor(taken)[:, None])[:, 0]
    assert float(lost.max()) <= 2 * ERRORS[pair.dtype]


def test_logprobs_of_an_answer_are_those_of_its_logits(pair: Pair) -> None:
    options = {
        "max_new_tokens": 8,
        "ignore_eos": True,
        "logprobs": 2,
        "output_logits": "generation",
    }
    answer = pair.turbomind(PROMPTS["one image"], options)
    assert answer.logits is not None
    assert answer.logits.shape[0] == len(answer.token_ids) == 8
    rows = answer.logits.log_softmax(-1)
    for row, token_id, logprobs in zip(rows, answer.token_ids, answer.logprobs, strict=True):
        assert float(row[token_id]) == float(row.max())  # rounding makes some logits equal
        assert logprobs[token_id] == pytest.approx(float(row[token_id]), abs=1e-5)


def test_a_conversation_of_two_rounds(pair: Pair) -> None:
    session = vlcore.Session()
    for prompt in (PROMPTS["one image"], ("And this?", IMAGES[1])):
        pair.turbomind.chat(prompt, session, {"max_new_tokens": 12, "ignore_eos": True})
        assert session.response is not None
        assert session.response.generate_token_len == 12


def test_16_concurrent_requests_end_at_their_own_limits(pair: Pair) -> None:
    prompts = [list(PROMPTS.values())[number % 3] for number in range(16)]
    options = [{"max_new_tokens": 5 + number, "ignore_eos": True} for number in range(16)]

    async def together() -> list[vlcore.Response]:
        asked = zip(prompts, options, strict=True)
        return list(await asyncio.gather(*(pair.turbomind.ainfer(*one) for one in asked)))

    answers = asyncio.run(together())
    assert [answer.generate_token_len for answer in answers] == [5 + n for n in range(16)]
    assert {answer.finish_reason for answer in answers} == {"length"}


def test_a_seed_repeats_an_answer(pair: Pair) -> None:
    options = {"max_new_tokens": 16, "do_sample": True, "temperature": 1.5, "top_k": 0}
    first, again, other = (
        pair.turbomind(PROMPTS["one image"], options | {"random_seed": seed, "ignore_eos": True})
        for seed in (7, 7, 8)
    )
    assert first.token_ids == again.token_ids != other.token_ids


def test_banned_tokens_and_end_tokens_are_not_generated(pair: Pair) -> None:
    prompt = PROMPTS["no image"]
    options: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True}
    first, *_ = pair.turbomind(prompt, options).token_ids
    banned = pair.turbomind(prompt, options | {"bad_token_ids": (first,)})
    assert first not in banned.token_ids
    early = pair.turbomind(prompt, options | {"stop_token_ids": (first,), "min_new_tokens": 3})
    assert early.generate_token_len >= 3
    assert first not in early.token_ids[:3]
    stopped = pair.turbomind(prompt, options | {"stop_token_ids": (first,)})
    assert (stopped.token_ids, stopped.finish_reason) == ((), "stop")


def test_the_repetition_penalty_ignores_image_placeholders(pair: Pair) -> None:
    penalty, kind = 1.3, "two images"
    options = {"max_new_tokens": 24, "ignore_eos": True, "repetition_penalty": penalty}
    taken = pair.turbomind(PROMPTS[kind], options).token_ids
    asked = requests_of(pair.embedded, PROMPTS[kind])
    first, *_ = generate(pair.embedded.engine, forced(asked, taken))
    assert first.prompt_logits is not None
    covered = {i for span in asked.prompt.spans for i in range(span.start, span.stop)}
    seen = [token for i, token in enumerate(asked.prompt.token_ids) if i not in covered]
    punish = RepetitionPenaltyLogitsProcessor(penalty)
    rows = first.prompt_logits[len(asked.prompt.token_ids) - 1 : -1]
    for logits, token_id in zip(rows, taken, strict=True):
        scores = punish(torch.tensor([seen]), logits[None].clone())[0]
        assert float(scores.max() - scores[token_id]) <= 3 * ERRORS[pair.dtype]
        seen.append(token_id)


def test_cancelling_during_generation_makes_room_for_others(pair: Pair) -> None:
    options = {"max_new_tokens": 400, "ignore_eos": True}

    async def body() -> None:
        for _ in range(40):  # more than TurboMind serves at once
            async with aclosing(
                pair.turbomind.astream_infer(PROMPTS["one image"], options)
            ) as stream:
                await anext(stream)
        answer = await pair.turbomind.ainfer(PROMPTS["one image"], {"max_new_tokens": 3})
        assert answer.generate_token_len <= 3

    asyncio.run(asyncio.wait_for(body(), 300))


def test_auto_is_turbomind_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLCORE_CACHE", str(tmp_path / "cache"))
    directory = write_checkpoint("llava", tmp_path / "llava")
    with vlcore.pipeline(directory, dtype="float16") as pipe:
        assert pipe.engine.name == "turbomind"
        assert pipe("Hello", {"max_new_tokens": 2, "ignore_eos": True}).generate_token_len == 2


def test_no_memory_left_is_an_error(tmp_path: Path) -> None:
    """In a process of its own, which a failed allocation may take with it."""
    directory = write_checkpoint("llava", tmp_path / "llava")
    program = f"""
import vlcore
from lmdeploy import TurbomindEngineConfig
settings = TurbomindEngineConfig(dtype="float16", cache_max_entry_count=2**30, session_len=512)
try:
    vlcore.pipeline({str(directory)!r}, engine="turbomind", device="cuda", engine_config=settings)
except vlcore.EngineUnavailableError as error:
    print(error)
"""
    environment = os.environ | {"VLCORE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "cannot start" in done.stdout, done.stderr

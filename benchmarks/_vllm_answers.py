"""Answers of the demo model on vLLM next to the embedded engine's, and what requests leave."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
from measure import markdown_table, progress

import vlcore

ROOT = Path(__file__).parents[1]
NUM_PASSES = 4
CACHE_BLOCKS = 64
"""So few that vLLM's cache is full, and its memory touched, after the first pass."""
KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
"""oneDNN, with which vLLM multiplies matrices on a CPU, keeps compiled kernels for as many shapes,
by default 1024. Each number of tokens in a step is a shape of its own."""


def random_questions(num: int) -> list[tuple[str, Any]]:
    """Draw images and ask about them, as demo/evaluate.py does with other seeds."""
    sys.path.insert(0, str(ROOT / "demo"))
    drawing, questions = import_module("drawing"), import_module("questions")
    asked: list[tuple[str, Any]] = []
    for number in range(num):
        rng = random.Random(f"vllm-{number}")  # noqa: S311  (seeded)
        drawn = drawing.draw_image(rng)
        turns = [questions.ask(rng, kind, drawn.things) for kind in questions.KINDS]
        asked += [(turn.question, drawn.image) for turn in turns if turn is not None]
        if len(asked) >= num:
            break
    return asked[:num]


def agreement(num_questions: int, num_requests: int) -> str:
    """Compare answers of the demo model with the embedded engine's, and look for what is left."""
    asked = random_questions(num_questions)
    options: dict[str, Any] = {"max_new_tokens": 40, "logprobs": 0}
    with demo_model("transformers") as pipe:
        expected = pipe(asked, options)
    with demo_model("vllm") as pipe:
        answers = pipe(asked, options)
        equal = sum(
            mine.token_ids == other.token_ids for mine, other in zip(answers, expected, strict=True)
        )
        difference = max(
            abs(one[token] - two[token])
            for mine, other in zip(answers, expected, strict=True)
            if mine.token_ids == other.token_ids
            for token, one, two in zip(mine.token_ids, mine.logprobs, other.logprobs, strict=True)
        )
        left = leftovers(pipe, asked, num_requests, "")
    os.environ[KERNELS] = "1"
    with demo_model("vllm") as pipe:
        left += leftovers(pipe, asked, num_requests, ", one cached kernel")
    del os.environ[KERNELS]
    rows = [
        ["greedy answers that are equal", f"{equal} of {len(asked)}"],
        ["largest difference of a token's log-probability", f"{difference:.1e}"],
        *left,
    ]
    return markdown_table(["the demo model in float32, next to the embedded engine", ""], rows)


def demo_model(engine: Any) -> vlcore.Pipeline:
    """Start an engine on the demo model."""
    settings: dict[str, Any] = {}
    if engine == "vllm":
        settings["engine_config"] = {"num_gpu_blocks_override": CACHE_BLOCKS}
    model = ROOT / "demo" / "tiny-llava"
    return vlcore.pipeline(model, engine=engine, device="cpu", dtype="float32", **settings)


async def send_all(
    send: Callable[[int], AsyncGenerator[Any, None]], num: int, draw: random.Random
) -> None:
    """Send requests, 32 at once, and leave every third one after a random number of chunks."""
    permits = asyncio.Semaphore(32)

    async def one(number: int) -> None:
        limit = draw.randrange(0, 12) if number % 3 == 0 else None
        async with permits, aclosing(send(number)) as stream:
            received = 0
            async for _ in stream:
                received += 1
                if limit is not None and received > limit:
                    return

    await asyncio.gather(*map(one, range(num)))


def leftovers(pipe: vlcore.Pipeline, asked: Sequence[Any], num: int, label: str) -> list[list[str]]:
    """Send requests of which a third is cancelled at random, and measure what they leave.

    The same number of prompts goes to vLLM alone in turn, to tell its own growth from vlcore's.
    """
    engine: Any = pipe.engine
    draw = random.Random(0)  # noqa: S311  (seeded)

    def through(number: int) -> AsyncGenerator[Any, None]:
        return pipe.astream_infer(
            asked[number % len(asked)], {"max_new_tokens": 20, "ignore_eos": True}
        )

    def alone(number: int) -> AsyncGenerator[Any, None]:
        from vllm import SamplingParams

        del number
        ids = [draw.randrange(3, 200) for _ in range(80)]
        options = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True, detokenize=False)
        return engine._llm.generate(  # type: ignore[no-any-return]
            {"prompt_token_ids": ids}, options, f"alone-{draw.getrandbits(64)}"
        )

    growth: dict[str, list[tuple[float, float]]] = {"through": [], "alone": []}
    for number in range(NUM_PASSES):
        for who in growth:
            progress(f"{num} requests {who}, time {number + 1}")
            before = resident_mib()
            if who == "through":
                asyncio.run(send_all(through, num, draw))
            else:
                engine._loop.run(send_all(alone, num, draw))
            gc.collect()
            here, others = resident_mib()
            growth[who].append((here - before[0], others - before[1]))
    works: Callable[[], Awaitable[bool]] = partial(
        engine._llm.engine_core.call_utility_async, "has_work"
    )
    has_work = engine._loop.run(works())
    in_vllm = engine._llm.get_num_unfinished_requests() + has_work

    def column(who: str, index: int) -> str:
        return ", ".join(f"{grown[index]:+.1f}" for grown in growth[who][1:])

    return [
        [f"left in vLLM after {NUM_PASSES} times {num} requests{label}", str(int(in_vllm))],
        [f"memory of this process at each further {num}, MiB", column("through", 0)],
        ["memory of vLLM's processes meanwhile, MiB", column("through", 1)],
        [f"the same at {num} prompts to vLLM alone, in turn with these, MiB", column("alone", 1)],
    ]


def resident_mib() -> tuple[float, float]:
    """Return the memory of this process, and of its descendants."""
    here = psutil.Process()
    others = sum(process.memory_info().rss for process in here.children(recursive=True))
    return here.memory_info().rss / 2**20, others / 2**20

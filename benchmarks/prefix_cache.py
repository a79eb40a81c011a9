"""Prefix caching and long prompts in the embedded engine, on a Llama of SmolLM2-135M's shape."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, aclosing
from dataclasses import replace
from itertools import count, pairwise
from typing import Any, NamedTuple

import torch
from _smollm2 import SMOLLM2_135M, VOCAB_SIZE
from engine import TINY, running_engine
from measure import interleave, markdown_table, ratios, spread

from vlcore.engines.base import EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.prompts.tokenization import Span, TokenizedPrompt

SYSTEM_TOKENS = 12
QUESTION_TOKENS = 20
ANSWER_TOKENS = 8
PARTS = ("turn", "questions", "texts", "wait")


class Prompts:
    """Draws prompts that share nothing unless they are made from each other.

    Args:
        num_rows: number of embeddings of an image.
        width: width of an embedding.
    """

    def __init__(self, num_rows: int, width: int) -> None:
        self._num_rows = num_rows
        self._width = width
        self._draw = torch.Generator().manual_seed(0)
        self._keys = count()

    def tokens(self, length: int) -> tuple[int, ...]:
        """Draw tokens of text."""
        return tuple(torch.randint(VOCAB_SIZE, (length,), generator=self._draw).tolist())

    def text(self, length: int, num_new: int) -> EngineRequest:
        """Draw a prompt without an image."""
        return EngineRequest(TokenizedPrompt(self.tokens(length)), (), _config(num_new))

    def image(self) -> EngineRequest:
        """Draw a question about an image of its own."""
        before, after = self.tokens(SYSTEM_TOKENS), self.tokens(QUESTION_TOKENS)
        rows = torch.randn(self._num_rows, self._width, generator=self._draw) / 8
        prompt = TokenizedPrompt(
            (*before, *(0,) * len(rows), *after),
            (Span(SYSTEM_TOKENS, SYSTEM_TOKENS + len(rows), 0, 0),),
        )
        key = str(next(self._keys))
        return EngineRequest(prompt, (rows,), _config(ANSWER_TOKENS), row_keys=(key,))

    def other_question(self, asked: EngineRequest) -> EngineRequest:
        """Draw another question about the same image."""
        kept = asked.prompt.token_ids[:-QUESTION_TOKENS]
        return self._with_tokens(asked, (*kept, *self.tokens(QUESTION_TOKENS)))

    def next_turn(self, asked: EngineRequest, answered: tuple[int, ...]) -> EngineRequest:
        """Draw a second question, after the answer to the first one."""
        before = asked.prompt.token_ids
        return self._with_tokens(asked, (*before, *answered, *self.tokens(QUESTION_TOKENS)))

    @staticmethod
    def _with_tokens(asked: EngineRequest, token_ids: tuple[int, ...]) -> EngineRequest:
        return replace(asked, prompt=replace(asked.prompt, token_ids=token_ids))


def _config(num_new: int) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=num_new, ignore_eos=True)


async def answer(
    engine: TransformersEngine, asked: EngineRequest
) -> tuple[tuple[int, ...], list[float]]:
    """Return the tokens of an answer, and when the request was sent and each of them arrived."""
    times = [time.perf_counter()]
    token_ids: list[int] = []
    async with aclosing(engine.generate(asked)) as outputs:
        async for output in outputs:
            times.append(time.perf_counter())
            token_ids += output.token_ids
    return tuple(token_ids), times


def second_turn(engine: TransformersEngine, prompts: Prompts) -> float:
    """Return the time to the first token of a second turn, divided by that of the first turn."""

    async def body() -> float:
        first = prompts.image()
        answered, first_times = await answer(engine, first)
        _, second_times = await answer(engine, prompts.next_turn(first, answered))
        return (second_times[1] - second_times[0]) / (first_times[1] - first_times[0])

    return asyncio.run(body())


class Seconds(NamedTuple):
    """How long something took."""

    wall: float
    cpu: float
    """CPU time of all threads, which other programs affect less."""


def together(engine: TransformersEngine, asked: list[EngineRequest]) -> Seconds:
    """Time requests that arrive together."""

    async def body() -> Seconds:
        started, cpu_started = time.perf_counter(), time.process_time()
        await asyncio.gather(*(answer(engine, one) for one in asked))
        return Seconds(time.perf_counter() - started, time.process_time() - cpu_started)

    return asyncio.run(body())


def longest_wait(engine: TransformersEngine, prompts: Prompts, length: int) -> float:
    """Return the longest time between two tokens of 7 answers while a long prompt is computed.

    It is in decoding steps of the 7 answers alone.
    """

    async def body() -> float:
        finished = asyncio.Event()
        times: list[list[float]] = [[] for _ in range(7)]

        async def follow(own: list[float]) -> None:
            async with aclosing(engine.generate(prompts.text(40, 4000))) as outputs:
                async for _ in outputs:
                    own.append(time.perf_counter())
                    if finished.is_set():
                        return

        running = [asyncio.create_task(follow(own)) for own in times]
        while min(map(len, times)) < 12:  # noqa: ASYNC110  (the engine signals no such moment)
            await asyncio.sleep(0.001)
        asked, first = (await answer(engine, prompts.text(length, 1)))[1]
        finished.set()
        await asyncio.gather(*running)
        steps = [b - a for own in times for a, b in pairwise(own[2:]) if b < asked]
        waits = [b - a for own in times for a, b in pairwise(own) if asked < b < first]
        return max(waits) / statistics.median(steps)

    return asyncio.run(body())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--layers", type=int, default=SMOLLM2_135M["num_hidden_layers"])
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="what is measured")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    options = parser.parse_args()
    rounds, shape = (
        (1, TINY)
        if options.quick
        else (
            options.rounds,
            SMOLLM2_135M | {"num_hidden_layers": options.layers},
        )
    )
    num_rows, long = (40, 300) if options.quick else (576, 2000)
    dtype = getattr(torch, options.dtype)
    prompts = Prompts(num_rows, shape["hidden_size"])
    with ExitStack() as stack:
        cached, uncached = (
            stack.enter_context(
                running_engine(shape, dtype, TransformersEngineConfig(prefix_caching=is_caching))
            )
            for is_caching in (True, False)
        )
        together(cached, [prompts.text(40, 4)])  # warm
        together(uncached, [prompts.text(40, 4)])
        requests_by_name: dict[str, list[EngineRequest]] = {}

        def shared(name: str, draw: Callable[[], list[EngineRequest]]) -> list[EngineRequest]:
            """Return the same requests for both engines, and new ones in the next round."""
            return (
                requests_by_name.pop(name)
                if name in requests_by_name
                else requests_by_name.setdefault(name, draw())
            )

        def questions() -> list[EngineRequest]:
            first = prompts.image()
            return [first, *(prompts.other_question(first) for _ in range(15))]

        def texts() -> list[EngineRequest]:
            return [prompts.text(length, 32) for length in range(32, 96, 8)]

        contenders: dict[str, Callable[[], Any]] = {
            "turn": lambda: second_turn(cached, prompts),
            "questions": lambda: together(cached, shared("questions", questions)),
            "questions without": lambda: together(uncached, shared("questions", questions)),
            "texts": lambda: together(cached, shared("texts", texts)),
            "texts without": lambda: together(uncached, shared("texts", texts)),
            "wait": lambda: longest_wait(cached, prompts, long),
        }
        measured = interleave(
            rounds,
            {name: own for name, own in contenders.items() if name.split()[0] in options.parts},
        )
    print("## Prefix caching and long prompts\n")
    print(
        f"A random Llama of SmolLM2-135M's shape, with {shape['num_hidden_layers']} layers, in "
        f"{options.dtype}. A question of "
        f"{QUESTION_TOKENS} tokens about an image of {num_rows} embeddings, its answer of "
        f"{ANSWER_TOKENS} tokens, and a second question of as many tokens; 16 questions about one "
        "image that arrive together; 8 prompts of 32 to 88 random tokens with 32 new tokens each, "
        f"which have nothing in common; and a prompt of {long} tokens next to 7 running answers. "
        "Ratios are taken within a round.\n"
    )

    def without(name: str, kind: str) -> str:
        """Return the time with prefix caching, divided by that without."""
        both = measured[name], measured[f"{name} without"]
        return spread(ratios(*([getattr(one, kind) for one in times] for times in both)))

    rows = []
    if "turn" in measured:
        turn = spread(measured["turn"])
        rows.append(("first token of the second turn, of that of the first", turn, "0.15"))
    if "questions" in measured:
        times = without("questions", "wall")
        rows.append(("16 questions, of the time without prefix caching", times, "0.35"))
    if "texts" in measured:
        times, cpu_times = without("texts", "wall"), without("texts", "cpu")
        rows.append(("nothing in common, of the time without prefix caching", times, "1.02"))
        rows.append(("nothing in common, of the CPU time without", cpu_times, "1.02"))
    if "wait" in measured:
        wait = spread(measured["wait"])
        rows.append(("longest wait next to a long prompt, in steps", wait, "4"))
    print(markdown_table(["", "median (min..max)", "at most"], rows))


if __name__ == "__main__":
    main()

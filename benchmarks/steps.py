"""Decoding steps of the embedded engine on a CPU: several formats of weights, and compiled."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from _smollm2 import SMOLLM2_135M
from engine import TINY, TokenIds, Workload, running_engine
from measure import interleave, markdown_table, progress, ratios, spread
from torch import nn

from vlcore.engines.base import EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.cpu_linear import CpuLinear
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.prompts.tokenization import TokenizedPrompt

HALF_A_BILLION: dict[str, Any] = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
"""The shape of Qwen2-0.5B, without biases."""
SHAPES = {"135M": SMOLLM2_135M, "0.5B": HALF_A_BILLION, "tiny": TINY}
SETTINGS: dict[str, dict[str, Any]] = {
    "as loaded": {"pack_weights": False},
    "packed": {},
    "int8": {"weights": "int8"},
    "int4": {"weights": "int4"},
    "compiled": {"compile": True},
}
BATCHES = (1, 8)


def step_time(engine: TransformersEngine, work: Workload) -> float:
    """Return the median time between two tokens after the first one, in seconds."""

    async def moments(prompt: TokenIds) -> list[float]:
        config = GenerationConfig(max_new_tokens=work.num_new, ignore_eos=True)
        request = EngineRequest(TokenizedPrompt(prompt), (), config)
        async with aclosing(engine.generate(request)) as outputs:
            return [time.perf_counter() async for _ in outputs]

    async def body() -> list[list[float]]:
        return await asyncio.gather(*map(moments, work.prompts))

    return statistics.median(
        after - before for times in asyncio.run(body()) for before, after in pairwise(times)
    )


@contextmanager
def timed_linear_layers(model: nn.Module) -> Iterator[list[float]]:
    """Collect the time of each call of a linear layer, in seconds."""
    started, spent = [0.0], list[float]()

    def before(*_: object) -> None:
        started[0] = time.perf_counter()

    def after(*_: object) -> None:
        spent.append(time.perf_counter() - started[0])

    layers = [one for one in model.modules() if isinstance(one, nn.Linear | CpuLinear)]
    hooks = [layer.register_forward_pre_hook(before) for layer in layers]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def linear_share(engine: TransformersEngine, work: Workload) -> float:
    """Return the share of a step that its linear layers take."""
    with timed_linear_layers(engine._model) as spent:
        step = step_time(engine, work)
        num_layers = sum(isinstance(m, nn.Linear | CpuLinear) for m in engine._model.modules())
        steps = [sum(spent[i : i + num_layers]) for i in range(0, len(spent), num_layers)]
    return statistics.median(steps) / step


def _linear_share_cell(setting: str, engine: TransformersEngine, work: Workload) -> str:
    # A compiled step does not call the modules of its layers.
    return "" if setting == "compiled" else f"{100 * linear_share(engine, work):.0f} %"


def measure(name: str, dtype: str, rounds: int, num_new: int) -> list[list[str]]:
    """Measure a shape in a dtype, and return the rows of the table."""
    rows = []
    with ExitStack() as stack:
        engines: dict[str, TransformersEngine] = {}
        for setting, options in SETTINGS.items():
            progress(f"{name}, {dtype}: {setting}")
            config = TransformersEngineConfig(
                prefix_caching=False, max_cached_tokens=4096, **options
            )
            made = running_engine(SHAPES[name], getattr(torch, dtype), config)
            engines[setting] = stack.enter_context(made)
        for batch in BATCHES:
            progress(f"{name}, {dtype}: batch of {batch}")
            work = Workload.draw(range(32, 32 + batch), num_new)
            for engine in engines.values():
                step_time(engine, work)  # warm
            calls = {key: partial(step_time, engine, work) for key, engine in engines.items()}
            measured = interleave(rounds, calls)
            for setting, engine in engines.items():
                rows.append(
                    [
                        f"{name}, {dtype}, batch of {batch}",
                        setting,
                        spread([1000 * seconds for seconds in measured[setting]], 1),
                        spread(ratios(measured["as loaded"], measured[setting])),
                        _linear_share_cell(setting, engine, work),
                    ]
                )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shape", action="append", choices=list(SHAPES))
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"])
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    options = parser.parse_args()
    shapes = ["tiny"] if options.quick else options.shape or ["135M", "0.5B"]
    rounds, num_new = (1, 4) if options.quick else (options.rounds, 24)
    rows = [
        row
        for name in shapes
        for dtype in options.dtype or ["float32", "bfloat16"]
        for row in measure(name, dtype, rounds, num_new)
    ]
    print("## Decoding steps on a CPU\n")
    print(
        "The median time of a step of the embedded engine after the first token, greedy, for "
        "random Llamas with the shapes of SmolLM2-135M and Qwen2-0.5B, on "
        f"{torch.get_num_threads()} thread(s): with `pack_weights=False`, with the default "
        'settings, with `weights="int8"` and `"int4"`, and with `compile=True`. Ratios are taken '
        f"within each of {rounds} interleaved rounds, as median (min..max). The last column is the "
        "share of a step that linear layers take.\n"
    )
    header = ["model", "weights", "step, ms", "tokens/s, times as loaded", "linear layers"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()

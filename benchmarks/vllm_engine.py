"""vLLM through vlcore, alone, and next to the embedded engine, on a CPU."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import torch
from _llama import NUM_ROWS, NUM_TEXT, requests, write_model
from _smollm2 import SMOLLM2_135M
from _vllm_answers import agreement
from measure import interleave, markdown_table, progress, quartiles, ratios, spread

from vlcore.engines.base import Engine, EngineRequest
from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.language.model import LanguageModel
from vlcore.language.view_cache import ViewCache

CPU = torch.device("cpu")
PARTIES = (1, 8, 32)
SHAPE = SMOLLM2_135M | {"max_position_embeddings": 1024}
TINY = SHAPE | {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 1024}
NUM_QUESTIONS = 200
NUM_REQUESTS = 1000
VISION_ENCODER = (24, 1024)
"""Layers and width of CLIP ViT-L/14, whose tensors share the files of LLaVA's language model."""
IDLE_S = 1.5
"""vLLM's processes wait for each other without sleeping until a second after the last token."""
BUDGET_S = 60.0
"""Time for the pairs of one workload, with vLLM alone and through vlcore."""
MIN_PAIRS, MAX_PAIRS = 4, 24
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
TITLE = "## vLLM on a CPU"


@dataclass(frozen=True)
class Sample:
    """One run of a workload."""

    seconds: float
    first_s: float
    """Median time to the first token."""
    own_cpu_s: float
    """Processor time of this process."""
    all_cpu_s: float
    """Processor time of this process and of vLLM's."""


def processor_s() -> tuple[float, float]:
    """Return the processor time of this process, and of it and its descendants."""
    own = time.process_time()
    times = [one.cpu_times() for one in psutil.Process().children(recursive=True)]
    return own, own + sum(one.user + one.system for one in times)


async def timed(tokens: Callable[[EngineRequest], Any], asked: Sequence[EngineRequest]) -> Sample:
    """Send all requests at once; ``tokens`` generates the number of tokens in each chunk.

    Raises:
        RuntimeError: an engine returned another number of tokens than it was asked for.
    """
    own_s, all_s = processor_s()
    started = time.perf_counter()
    firsts: list[float] = []

    async def count(request: EngineRequest) -> int:
        num_tokens = 0
        async with aclosing(tokens(request)) as chunks:
            async for number in chunks:
                if not num_tokens:
                    firsts.append(time.perf_counter() - started)
                num_tokens += number
        return num_tokens

    counts = await asyncio.gather(*map(count, asked))
    seconds = time.perf_counter() - started
    if counts != [request.config.max_new_tokens for request in asked]:
        raise RuntimeError(f"the engine returned {counts} tokens")
    now_own_s, now_all_s = processor_s()
    return Sample(seconds, statistics.median(firsts), now_own_s - own_s, now_all_s - all_s)


def through_vlcore(engine: Engine, asked: Sequence[EngineRequest]) -> Sample:
    """Measure an engine of vlcore, which returns text."""

    async def tokens(request: EngineRequest) -> Any:
        async with aclosing(engine.generate(request)) as chunks:
            async for chunk in chunks:
                yield len(chunk.token_ids)

    return asyncio.run(timed(tokens, asked))


def vllm_alone(engine: Any, asked: Sequence[EngineRequest]) -> Sample:
    """Measure the same vLLM with nothing of vlcore in between; it returns token ids."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from vlcore.engines.external.prompt import to_host_prompt
    from vlcore.engines.vllm.requests import _as_input

    prompts = {id(one): _as_input(to_host_prompt(one, torch.float32), []) for one in asked}

    async def tokens(request: EngineRequest) -> Any:
        options = SamplingParams(
            max_tokens=request.config.max_new_tokens,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        name = f"{random.getrandbits(64)}"
        async for output in engine._llm.generate(prompts[id(request)], options, name):
            yield len(output.outputs[0].token_ids)

    return engine._loop.run(timed(tokens, asked))  # type: ignore[no-any-return]


@contextmanager
def engines(model: LanguageModel, cache: Path) -> Iterator[tuple[Any, TransformersEngine]]:
    """Start vLLM and the embedded engine, without prefix caches, as each workload is repeated."""
    from vlcore.engines.vllm.engine import VllmEngine

    tokenizer = model.tokenizer()
    embedded = TransformersEngine(
        model,
        tokenizer,
        device=CPU,
        dtype=torch.float32,
        config=TransformersEngineConfig(max_num_seqs=max(PARTIES), prefix_caching=False),
    )
    progress("starting vLLM")
    settings = {"enable_prefix_caching": False, "max_num_seqs": max(PARTIES)}
    view = ViewCache(cache).get(model)
    vllm = VllmEngine(model, tokenizer, view, device=CPU, dtype=torch.float32, config=settings)
    try:
        yield vllm, embedded
    finally:
        asyncio.run(vllm.close())
        asyncio.run(embedded.close())


def throughput(
    shape: dict[str, Any], parties: Sequence[int], rounds: int, num_new: int, budget_s: float
) -> str:
    """Measure all on each workload, and write the table."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "model"
        directory.mkdir()
        model = write_model(directory, shape)
        with engines(model, Path(name) / "views") as (vllm, embedded):
            for with_image, num in product((False, True), parties):
                asked = requests(shape, num=num, num_new=num_new, with_image=with_image)
                label = f"{num} with {'an image' if with_image else 'text alone'}"
                row = [label, *compare(vllm, embedded, asked, rounds, budget_s)]
                progress(" | ".join(row))
                rows.append(row)
    return markdown_table(
        [
            "requests at once",
            "embedded, tokens/s",
            "vLLM alone",
            "vLLM through vlcore",
            "pairs",
            "vlcore/alone",
            "of the fastest runs",
            "all processes' CPU time, vlcore/alone",
            "this process, ms a token, alone",
            "through vlcore",
            "vlcore/embedded",
            "first token, embedded, s",
            "alone, s",
            "vlcore, s",
        ],
        rows,
    )


def compare(
    vllm: Any,
    embedded: TransformersEngine,
    asked: Sequence[EngineRequest],
    rounds: int,
    budget_s: float,
) -> list[str]:
    """Measure one workload: in each round the embedded engine, and then pairs on vLLM."""
    alone, vlcore_ = partial(vllm_alone, vllm, asked), partial(through_vlcore, vllm, asked)
    pair_s = 2 * alone().seconds  # it warms up
    num_pairs = min(max(MIN_PAIRS, int(budget_s / pair_s)), MAX_PAIRS)
    rounds = max(1, min(rounds, int(budget_s / pair_s)))

    def in_embedded() -> Sample:
        time.sleep(IDLE_S)
        return through_vlcore(embedded, asked)

    def in_pairs() -> dict[str, list[Sample]]:
        return interleave(-(-num_pairs // rounds), {"alone": alone, "vlcore": vlcore_})

    contenders: dict[str, Callable[[], Any]] = {"embedded": in_embedded, "vllm": in_pairs}
    measured = interleave(rounds, contenders)
    samples: dict[str, list[Sample]] = {"embedded": measured["embedded"]}
    for who in ("alone", "vlcore"):
        samples[who] = [sample for pairs in measured["vllm"] for sample in pairs[who]]

    num_tokens = sum(request.config.max_new_tokens for request in asked)

    def ratio(field: str) -> str:
        mine, bases = ([getattr(one, field) for one in samples[who]] for who in ("vlcore", "alone"))
        return quartiles(ratios(mine, bases))

    seconds = {who: [one.seconds for one in samples[who]] for who in samples}
    rate = {who: num_tokens / statistics.median(seconds[who]) for who in samples}
    return [
        *(f"{rate[who]:.0f}" for who in samples),
        str(len(seconds["alone"])),
        quartiles(ratios(seconds["alone"], seconds["vlcore"])),
        f"{min(seconds['alone']) / min(seconds['vlcore']):.2f}",
        ratio("all_cpu_s"),
        *(
            f"{statistics.median(one.own_cpu_s for one in samples[who]) * 1000 / num_tokens:.2f}"
            for who in ("alone", "vlcore")
        ),
        f"{rate['vlcore'] / rate['embedded']:.2f}",
        *(f"{statistics.median(one.first_s for one in samples[who]):.2f}" for who in samples),
    ]


def loading(shape: dict[str, Any], vision: tuple[int, int], rounds: int) -> str:
    """Read a checkpoint whose files hold a vision encoder as well: by the index, and whole."""
    from safetensors import safe_open
    from safetensors.torch import load, save_file

    from vlcore.engines.vllm.loader import read_weights

    def by_index(view: Path) -> Iterator[torch.Tensor]:
        for _, tensor in read_weights(view):
            yield tensor

    def whole(view: Path) -> Iterator[torch.Tensor]:
        for path in sorted(view.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    yield file.get_tensor(name)

    def read(tensors: Callable[[Path], Iterator[torch.Tensor]]) -> tuple[int, float]:
        started = time.perf_counter()
        num_bytes = sum(tensor.clone().nbytes for tensor in tensors(view))
        return num_bytes, time.perf_counter() - started

    with tempfile.TemporaryDirectory() as name:
        view = Path(name)
        write_model(view, shape)
        path = next(view.glob("*.safetensors"))
        layers, width = vision
        tensors = {
            f"vision_tower.{number}": torch.zeros(12 * width, width, dtype=torch.float16)
            for number in range(layers)
        }
        save_file(load(path.read_bytes()) | tensors, path, {"format": "pt"})
        measured = interleave(
            rounds, {"by the index": partial(read, by_index), "whole": partial(read, whole)}
        )
    rows = [
        [who, f"{samples[0][0] / 2**20:.0f}", spread([seconds for _, seconds in samples])]
        for who, samples in measured.items()
    ]
    return markdown_table(["files with a vision encoder, read", "MiB", "s"], rows)


def main() -> None:
    """Print the tables, or that nothing was measured."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="tiny sizes: checks that all run")
    quick = options.parse_args().quick
    if importlib.util.find_spec("vllm") is None:
        print(f"{TITLE}\n\nNot measured: vLLM is not installed (`make bench-vllm`).\n")
        print(markdown_table(["requests at once", "tokens/s"], [["-", "-"]]))
        return
    os.environ.update(QUIET)
    if (os.cpu_count() or 1) == 1:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # vLLM would reserve the only processor
    if quick:
        tables = [loading(TINY, (2, 64), 1), throughput(TINY, (2,), 1, 4, 0.1), agreement(4, 12)]
    else:
        tables = [
            loading(SHAPE, VISION_ENCODER, 5),
            throughput(SHAPE, PARTIES, 3, 16, BUDGET_S),
            agreement(NUM_QUESTIONS, NUM_REQUESTS),
        ]
    print(
        f"{TITLE}\n\nA random Llama of SmolLM2-135M's shape, float32; "
        f"prompts of {NUM_TEXT} tokens, alone or around an image of {NUM_ROWS} embeddings; 16 new "
        "tokens. vLLM 0.32 in its build for CPUs, compiled, with its own choice of threads, which "
        "leaves a processor to its scheduler. Neither caches prefixes. Alone, it returns token ids "
        "and no text. Medians; ratios are those within a pair of runs, with the lower and upper "
        "quartiles (less than four pairs: the range). CPU time includes vLLM's processes while "
        "they wait for each other, which they do without sleeping.\n"
    )
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()

"""TurboMind through vlcore, alone, and next to the embedded engine, on a random Llama."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any

import torch
from _cuda import DRY_RUN, device, device_name, parser
from _llama import (
    DTYPE,
    LLAMA_7B,
    NUM_ROWS,
    NUM_TEXT,
    SMALL,
    requests,
    seconds_for,
    write_model,
)
from measure import interleave, markdown_table, progress, ratios, spread
from transformers import LlamaConfig

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.engines.base import EngineRequest
from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.engines.turbomind.engine import TurbomindEngine
from vlcore.engines.turbomind.support import lmdeploy_version, unsupported_reason
from vlcore.language.model import LanguageModel
from vlcore.language.view_cache import ViewCache

PARTIES = (1, 8, 32, 128)
SMALL_LAYERS, ALL_LAYERS = 8, 32
"""Of the two models: one that fits into minutes next to the embedded engine, and a whole one."""
COLUMNS = {
    "vlcore": "TurboMind through vlcore",
    "alone": "TurboMind alone",
    "embedded": "embedded",
}


class TurbomindAlone:
    """TurboMind through lmdeploy's own interface, with nothing of vlcore in between.

    Args:
        engine: started TurboMind; vlcore's part of it is left aside.
        asked: the requests, whose embeddings are on the host already.
    """

    def __init__(self, engine: TurbomindEngine, asked: list[EngineRequest]) -> None:
        from lmdeploy import GenerationConfig as LmdeployConfig

        self._instances = [engine._model.create_instance() for _ in asked]
        self._asked = asked
        self._configs = [
            LmdeployConfig(
                max_new_tokens=request.config.max_new_tokens,
                ignore_eos=True,
                top_k=1,
                temperature=1.0,
                random_seed=0,
            )
            for request in asked
        ]
        self._session_ids = count(2**32)  # apart from those of the engine

    def seconds(self) -> float:
        """Seconds for all requests, sent at once."""

        async def tokens_of(instance: Any, request: EngineRequest, config: Any) -> int:
            outputs = instance.async_stream_infer(
                next(self._session_ids),
                list(request.prompt.token_ids),
                input_embeddings=list(request.rows),
                input_embedding_ranges=[[span.start, span.stop] for span in request.prompt.spans],
                gen_config=config,
                stream_output=True,
            )
            return sum([len(output.token_ids) async for output in outputs])

        async def body() -> float:
            started = time.perf_counter()
            together = zip(self._instances, self._asked, self._configs, strict=True)
            counts = await asyncio.gather(*(tokens_of(*one) for one in together))
            seconds = time.perf_counter() - started
            if counts != [request.config.max_new_tokens for request in self._asked]:
                raise RuntimeError(f"TurboMind returned {counts} tokens")
            return seconds

        return asyncio.run(body())


@contextmanager
def turbomind_engine(model: LanguageModel, cache: Path) -> Iterator[TurbomindEngine]:
    """Start TurboMind on the first GPU."""
    from lmdeploy import TurbomindEngineConfig

    progress("starting TurboMind")
    engine = TurbomindEngine(
        model,
        model.tokenizer(),
        ViewCache(cache).get(model),
        device=device(),
        dtype=DTYPE,
        config=TurbomindEngineConfig(
            dtype="float16",
            session_len=1024,
            max_batch_size=max(PARTIES),
            cache_max_entry_count=0.5,
        ),
    )
    try:
        yield engine
    finally:
        asyncio.run(engine.close())


@contextmanager
def embedded_engine(model: LanguageModel) -> Iterator[TransformersEngine]:
    """Start the embedded engine on the first GPU."""
    engine = TransformersEngine(
        model,
        model.tokenizer(),
        device=device(),
        dtype=DTYPE,
        config=TransformersEngineConfig(
            max_num_seqs=max(PARTIES), session_len=1024, prefix_caching=False
        ),
    )
    try:
        yield engine
    finally:
        asyncio.run(engine.close())


@contextmanager
def standard_output_apart() -> Iterator[None]:
    """Send what TurboMind's C++ prints to standard error: standard output is for the result."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def measure(
    shape: Mapping[str, Any],
    parties: tuple[int, ...],
    rounds: int,
    num_new: int,
    *,
    with_embedded: bool,
) -> str:
    """Measure all on each workload, and write the table."""
    rows, cut_off = [], ""
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        directory = Path(name) / "model"
        directory.mkdir()
        progress("writing the model")
        model = write_model(directory, shape, device())
        # TurboMind last, as it takes a share of the memory that is left.
        embedded = running.enter_context(embedded_engine(model)) if with_embedded else None
        turbomind = running.enter_context(turbomind_engine(model, Path(name) / "views"))
        try:
            for with_image, num in product((True, False), parties):
                asked = requests(shape, num=num, num_new=num_new, with_image=with_image)
                contenders: dict[str, Callable[[], float]] = {
                    "vlcore": partial(seconds_for, turbomind, asked),
                    "alone": TurbomindAlone(turbomind, asked).seconds,
                }
                if embedded is not None:
                    contenders["embedded"] = partial(seconds_for, embedded, asked)
                for warm in contenders.values():
                    warm()
                seconds = interleave(rounds, contenders)
                rates = {who: [num * num_new / each for each in seconds[who]] for who in contenders}
                row = [
                    f"{num} with {'an image' if with_image else 'text alone'}",
                    *(spread(rates[who], 0) for who in contenders),
                    *(spread(ratios(rates["vlcore"], rates[who])) for who in list(contenders)[1:]),
                ]
                progress(" | ".join(row))
                rows.append(row)
        except KeyboardInterrupt:  # keeps what was measured until then
            cut_off = "\n\nThe run was cut off before the workloads that are missing."
    return markdown_table(headers(with_embedded), rows) + cut_off


def headers(with_embedded: bool) -> list[str]:
    """Name the columns of the table."""
    names = list(COLUMNS.values())[: 3 if with_embedded else 2]
    wanted = ["vlcore by TurboMind alone (wanted >= 0.97)", "vlcore by embedded (wanted >= 5)"]
    return ["requests at once", *names, *wanted[: len(names) - 1]]


def reason_not_to_measure() -> str | None:
    """Say what is missing here."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    config = LlamaConfig(**SMALL).to_dict() | {"architectures": ["LlamaForCausalLM"]}
    nowhere = Checkpoint(Path("nowhere"))
    return unsupported_reason(LanguageModel(nowhere, config, {}), device(), DTYPE)


def report(layers: int, options: argparse.Namespace, *, with_embedded: bool) -> str:
    """Measure a model of so many layers, or say why not, as a section of results."""
    tiny = options.quick or options.dry_run
    shape = SMALL if tiny else LLAMA_7B | {"num_hidden_layers": layers}
    parties = PARTIES[:2] if tiny else PARTIES
    num_new, rounds = (8, 1) if tiny else (128, options.rounds)
    reason = reason_not_to_measure()
    if reason is None:
        where = f"{DRY_RUN if options.dry_run else 'measured'} on {device_name()}"
        where += f", lmdeploy {lmdeploy_version()}"
        with standard_output_apart():
            result = measure(shape, parties, rounds, num_new, with_embedded=with_embedded)
    else:
        where = f"not measured: {reason}"
        names = headers(with_embedded)
        result = markdown_table(
            names, [(num, *["not measured"] * (len(names) - 1)) for num in parties]
        )
    others = " and of the embedded engine" if with_embedded else ""
    return (
        f"## TurboMind, a model of {layers} layers\n\n"
        f"New tokens a second of TurboMind{others} on one GPU ({where}), in float16, on a random "
        f"Llama of width {shape['hidden_size']}. Prompts have {NUM_TEXT} tokens of text, with the "
        f"{NUM_ROWS} embeddings of an image or without, and answers {num_new} tokens; all requests "
        "are sent at once. TurboMind alone is lmdeploy's own interface, asked for the same token "
        "ids; vlcore also turns them into text. Ratios are taken within a round; median "
        f"(min..max) of {rounds} round(s).\n\n{result}"
    )


def main() -> None:
    """Measure and print, or say why not."""
    command = parser(__doc__, rounds=3)
    command.add_argument(
        "--layers",
        type=int,
        nargs="+",
        default=[SMALL_LAYERS, ALL_LAYERS],
        choices=[SMALL_LAYERS, ALL_LAYERS],
        help="of the models; the larger one runs without the embedded engine",
    )
    options = command.parse_args()
    sections = [
        report(layers, options, with_embedded=layers == SMALL_LAYERS) for layers in options.layers
    ]
    print("\n\n".join(sections))


if __name__ == "__main__":
    main()

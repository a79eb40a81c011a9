"""TurboMind beside the embedded engine on one GPU, on a random Llama with pictures' rows."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from engine import tokenizer
from measure import interleave, markdown_table, progress, ratios, spread
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from vlcore.checkpoint.checkpoint import Checkpoint, renamed
from vlcore.engines.base import Engine, EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.transformers.engine import TransformersEngine, TransformersEngineConfig
from vlcore.engines.turbomind.engine import TurbomindEngine
from vlcore.engines.turbomind.support import lmdeploy_version, unsupported_reason
from vlcore.language.model import LanguageModel
from vlcore.language.view_cache import ViewCache
from vlcore.prompts.tokenization import Span, TokenizedPrompt

LLAMA_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
SMALL: dict[str, Any] = LLAMA_7B | {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 1024,
}
NUM_ROWS = 576
"""Of a picture in LLaVA 1.5."""
NUM_TEXT = 48
DTYPE = torch.float16
PARTIES = (1, 8, 32, 128)
SHARD_BYTES = 2**30


def write_model(directory: Path, shape: Mapping[str, Any]) -> LanguageModel:
    """Write random weights, a shard at a time."""
    config = LlamaConfig(**shape)
    with init_empty_weights():
        shapes = {name: t.shape for name, t in LlamaForCausalLM(config).state_dict().items()}
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    draw = torch.Generator().manual_seed(0)
    for number, (name, size) in enumerate(shapes.items(), start=1):
        is_norm = name.endswith("norm.weight")
        noise = torch.empty(size).normal_(0, 0.02, generator=draw)
        shard[name] = (torch.ones(size) if is_norm else noise).to(DTYPE)
        if number == len(shapes) or sum(t.nbytes for t in shard.values()) >= SHARD_BYTES:
            filename = f"model-{number:05}.safetensors"
            save_file(shard, directory / filename, {"format": "pt"})
            weight_map |= dict.fromkeys(shard, filename)
            shard = {}
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    values = config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "float16"}
    (directory / "config.json").write_text(json.dumps(values))
    tokenizer(shape["vocab_size"]).save_pretrained(directory)
    checkpoint = Checkpoint(directory)
    return LanguageModel(checkpoint, values, renamed(checkpoint, {"": ""}))


def requests(
    shape: Mapping[str, Any], *, num: int, num_new: int, with_picture: bool
) -> list[EngineRequest]:
    """Draw prompts of text, each with a picture's rows in its middle or without."""
    draw = torch.Generator().manual_seed(num)
    config = GenerationConfig(max_new_tokens=num_new, ignore_eos=True)
    made = []
    for _ in range(num):
        ids = torch.randint(1, shape["vocab_size"], (NUM_TEXT,), generator=draw).tolist()
        if not with_picture:
            made.append(EngineRequest(TokenizedPrompt(tuple(ids)), (), config))
            continue
        half = NUM_TEXT // 2
        ids[half:half] = [0] * NUM_ROWS
        rows = torch.randn(NUM_ROWS, shape["hidden_size"], generator=draw) / 50
        spans = (Span(half, half + NUM_ROWS, 0, 0),)
        made.append(EngineRequest(TokenizedPrompt(tuple(ids), spans), (rows.to(DTYPE),), config))
    return made


def tokens_per_second(engine: Engine, asked: list[EngineRequest]) -> float:
    """Answer all at once."""

    async def answer(request: EngineRequest) -> int:
        async with aclosing(engine.generate(request)) as pieces:
            return sum([len(piece.token_ids) async for piece in pieces])

    async def body() -> float:
        started = time.perf_counter()
        counts = await asyncio.gather(*map(answer, asked))
        return sum(counts) / (time.perf_counter() - started)

    return asyncio.run(body())


@contextmanager
def engines(model: LanguageModel, cache: Path) -> Iterator[dict[str, Engine]]:
    """Start both on the first GPU; TurboMind last, as it takes a share of what is left."""
    from lmdeploy import TurbomindEngineConfig

    device = torch.device("cuda", 0)
    text = model.tokenizer()
    embedded = TransformersEngine(
        model,
        text,
        device=device,
        dtype=DTYPE,
        config=TransformersEngineConfig(max_num_seqs=max(PARTIES), session_len=1024),
    )
    turbomind = TurbomindEngine(
        model,
        text,
        ViewCache(cache).get(model),
        device=device,
        dtype=DTYPE,
        config=TurbomindEngineConfig(
            dtype="float16",
            session_len=1024,
            max_batch_size=max(PARTIES),
            cache_max_entry_count=0.5,
        ),
    )
    try:
        yield {"TurboMind": turbomind, "embedded": embedded}
    finally:
        asyncio.run(turbomind.close())
        asyncio.run(embedded.close())


def measure(shape: Mapping[str, Any], parties: tuple[int, ...], rounds: int, num_new: int) -> str:
    """Measure both engines on each workload, and write the table."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "model"
        directory.mkdir()
        progress("writing the model")
        model = write_model(directory, shape)
        with engines(model, Path(name) / "views") as running:
            for with_picture in (True, False):
                for num in parties:
                    asked = requests(shape, num=num, num_new=num_new, with_picture=with_picture)
                    contenders = {
                        engine: partial(tokens_per_second, running[engine], asked)
                        for engine in running
                    }
                    for warm in contenders.values():
                        warm()
                    measured = interleave(rounds, contenders)
                    rows.append(
                        (
                            f"{num} with {'a picture' if with_picture else 'text alone'}",
                            spread(measured["TurboMind"], 1),
                            spread(measured["embedded"], 1),
                            spread(ratios(measured["TurboMind"], measured["embedded"])),
                        )
                    )
    return table(rows)


def table(rows: list[tuple[Any, ...]]) -> str:
    """Write the results."""
    return markdown_table(["requests at once", "TurboMind", "embedded", "times faster"], rows)


def reason_not_to_measure() -> str | None:
    """Say what is missing here."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    config = LlamaConfig(**SMALL).to_dict() | {"architectures": ["LlamaForCausalLM"]}
    nowhere = Checkpoint(Path("nowhere"))
    return unsupported_reason(LanguageModel(nowhere, config, {}), torch.device("cuda", 0), DTYPE)


def main() -> None:
    """Measure and print, or say why not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=LLAMA_7B["num_hidden_layers"])
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    options = parser.parse_args()
    shape = SMALL if options.quick else LLAMA_7B | {"num_hidden_layers": options.layers}
    parties = PARTIES[:2] if options.quick else PARTIES
    num_new = 8 if options.quick else 128
    reason = reason_not_to_measure()
    if reason is None:
        where = f"{torch.cuda.get_device_name(0)}, lmdeploy {lmdeploy_version()}"
        result = measure(shape, parties, 1 if options.quick else options.rounds, num_new)
    else:
        where = f"not measured: {reason}"
        result = table([(num, *["not measured"] * 3) for num in parties])
    print("## TurboMind\n")
    print(
        f"Tokens a second of TurboMind and of the embedded engine on the same GPU ({where}), in "
        f"float16, on a random Llama of {shape['num_hidden_layers']} layers of width "
        f"{shape['hidden_size']}. Prompts have {NUM_TEXT} tokens of text, with the {NUM_ROWS} rows "
        f"of a picture or without, and answers {num_new} tokens; all are asked at once. Ratios "
        "are taken within a round.\n"
    )
    print(result)


if __name__ == "__main__":
    main()

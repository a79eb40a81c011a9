"""A random Llama as a checkpoint, and requests for it, with image embeddings or without."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from engine import tokenizer
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.checkpoint.renaming import renamed
from vlcore.engines.base import Engine, EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.language.model import LanguageModel
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
"""Embeddings of an image in LLaVA 1.5."""
NUM_TEXT = 48
DTYPE = torch.float16
SHARD_BYTES = 2**30


def write_model(
    directory: Path, shape: Mapping[str, Any], device: torch.device | str = "cpu"
) -> LanguageModel:
    """Write random weights, one shard at a time; ``device`` draws them."""
    config = LlamaConfig(**shape)
    with init_empty_weights():
        shapes = {name: t.shape for name, t in LlamaForCausalLM(config).state_dict().items()}
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    draw = torch.Generator(device).manual_seed(0)
    for number, (name, size) in enumerate(shapes.items(), start=1):
        if name.endswith("norm.weight"):
            shard[name] = torch.ones(size, dtype=DTYPE)
        else:
            noise = torch.empty(size, device=device).normal_(0, 0.02, generator=draw)
            shard[name] = noise.to(DTYPE).cpu()
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
    shape: Mapping[str, Any], *, num: int, num_new: int, with_image: bool
) -> list[EngineRequest]:
    """Draw prompts of text, each with an image's embeddings in its middle or without."""
    draw = torch.Generator().manual_seed(num)
    config = GenerationConfig(max_new_tokens=num_new, ignore_eos=True)
    made = []
    for _ in range(num):
        ids = torch.randint(1, shape["vocab_size"], (NUM_TEXT,), generator=draw).tolist()
        if not with_image:
            made.append(EngineRequest(TokenizedPrompt(tuple(ids)), (), config))
            continue
        half = NUM_TEXT // 2
        ids[half:half] = [0] * NUM_ROWS
        rows = torch.randn(NUM_ROWS, shape["hidden_size"], generator=draw) / 50
        spans = (Span(half, half + NUM_ROWS, 0, 0),)
        made.append(EngineRequest(TokenizedPrompt(tuple(ids), spans), (rows.to(DTYPE),), config))
    return made


def seconds_for(engine: Engine, asked: Sequence[EngineRequest]) -> float:
    """Seconds for all requests, sent at once.

    Raises:
        RuntimeError: an engine returned another number of tokens than it was asked for.
    """

    async def tokens_of(request: EngineRequest) -> int:
        async with aclosing(engine.generate(request)) as chunks:
            return sum([len(chunk.token_ids) async for chunk in chunks])

    async def body() -> float:
        started = time.perf_counter()
        counts = await asyncio.gather(*map(tokens_of, asked))
        seconds = time.perf_counter() - started
        if counts != [request.config.max_new_tokens for request in asked]:
            raise RuntimeError(f"{engine.name} returned {counts} tokens")
        return seconds

    return asyncio.run(body())

"""The embedded engine next to bare transformers, on a random Llama of SmolLM2-135M's shape."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _smollm2 import SMOLLM2_135M, VOCAB_SIZE
from measure import interleave, markdown_table, ratios, spread
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vlcore._utils.device import as_device
from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.checkpoint.renaming import renamed
from vlcore.engines.base import EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.language.model import LanguageModel
from vlcore.prompts.tokenization import TokenizedPrompt

TINY = {**SMOLLM2_135M, "hidden_size": 72, "num_hidden_layers": 2, "intermediate_size": 96}
SPACING_S = 0.05
"""Between two arrivals: about a decoding step."""

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """Prompts of random tokens, whose completions have the same length."""

    prompts: list[TokenIds]
    num_new: int

    @classmethod
    def draw(cls, lengths: Iterable[int], num_new: int) -> Workload:
        """Draw one prompt of each length."""
        draw = torch.Generator().manual_seed(0)
        prompts = (torch.randint(VOCAB_SIZE, (n,), generator=draw).tolist() for n in lengths)
        return cls([tuple(prompt) for prompt in prompts], num_new)


class Bare:
    """transformers without an engine, on one padded batch."""

    def __init__(self, model: Any, num_new: int) -> None:
        self.model = model
        self.num_new = num_new

    def decode(self, prompts: list[TokenIds]) -> float:
        """Time a plain loop of greedy decoding, one forward per token, in seconds."""
        ids, mask = self._padded(prompts)
        started = time.perf_counter()
        with torch.inference_mode():
            cache = DynamicCache(config=self.model.config)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            for _ in range(self.num_new):
                logits = self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits
                ids = logits[:, -1].argmax(dim=-1, keepdim=True)
                ids.tolist()
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                positions = positions[:, -1:] + 1
        return time.perf_counter() - started

    def generate(self, prompts: list[TokenIds]) -> float:
        """Time transformers' ``generate``, in seconds."""
        ids, mask = self._padded(prompts)
        started = time.perf_counter()
        with torch.inference_mode():
            self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.num_new,
                min_new_tokens=self.num_new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return time.perf_counter() - started

    def _padded(self, prompts: list[TokenIds]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(map(len, prompts))
        gaps = [[0] * (longest - len(prompt)) for prompt in prompts]
        ids = [gap + list(prompt) for gap, prompt in zip(gaps, prompts, strict=True)]
        mask = [gap + [1] * len(prompt) for gap, prompt in zip(gaps, prompts, strict=True)]
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class Engine:
    """The embedded engine, with several concurrent requests."""

    def __init__(self, engine: TransformersEngine, work: Workload) -> None:
        self.engine = engine
        self.work = work

    async def ask(
        self, prompt: TokenIds, delay_s: float = 0.0, num_new: int | None = None
    ) -> list[float]:
        """Send a request after a delay; return the time of sending and of each token."""
        await asyncio.sleep(delay_s)
        config = GenerationConfig(max_new_tokens=num_new or self.work.num_new, ignore_eos=True)
        request = EngineRequest(TokenizedPrompt(prompt), (), config)
        asked = time.perf_counter()
        async with aclosing(self.engine.generate(request)) as outputs:
            return [asked, *[time.perf_counter() async for _ in outputs]]

    def together(self) -> float:
        """Time all prompts, each arriving a little after the previous one, in seconds."""

        async def body() -> list[list[float]]:
            arrivals = enumerate(self.work.prompts)
            return await asyncio.gather(*(self.ask(p, i * SPACING_S) for i, p in arrivals))

        moments = asyncio.run(body())
        return max(own[-1] for own in moments) - min(own[0] for own in moments)

    def one_after_another(self) -> float:
        """Time all prompts, each sent when the previous one is answered, in seconds."""

        async def body() -> float:
            started = time.perf_counter()
            for prompt in self.work.prompts:
                await self.ask(prompt)
            return time.perf_counter() - started

        return asyncio.run(body())

    def alone(self) -> float:
        """Time the longest prompt, in seconds."""
        moments = asyncio.run(self.ask(self.work.prompts[-1]))
        return moments[-1] - moments[0]

    def late_by_steps(self) -> float:
        """Return the median delay of a first token while 7 others decode, in decoding steps."""

        async def body() -> float:
            *others, late = self.work.prompts
            alone = [
                first - asked for asked, first in [await self.ask(late, 0, 1) for _ in range(3)]
            ]
            num_new = 40 + 10 * self.work.num_new
            running = [asyncio.create_task(self.ask(p, 0, num_new)) for p in others]
            # The engine signals nothing when a request joins its batch.
            while len(self.engine._batch.sequences) < len(others):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            delays, steps = [], []
            for _ in range(7):
                asked, first, *rest = await self.ask(late, 0.037, 4)
                delays.append(first - asked)
                steps.append((rest[-1] - first) / len(rest))
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            waited = statistics.median(delays) - statistics.median(alone)
            return waited / statistics.median(steps)

        return asyncio.run(body())


@contextmanager
def running_engine(
    shape: dict[str, Any],
    dtype: torch.dtype,
    settings: TransformersEngineConfig,
    text_tokenizer: PreTrainedTokenizerFast | None = None,
) -> Iterator[TransformersEngine]:
    """Start the engine on a random checkpoint, with a tokenizer if the texts matter."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        torch.manual_seed(0)
        config = LlamaConfig(**shape)
        state = LlamaForCausalLM(config).state_dict()
        del state["lm_head.weight"]  # tied
        save_file(state, directory / "model.safetensors")
        values = config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
        (directory / "config.json").write_text(json.dumps(values))
        checkpoint = Checkpoint(directory)
        model = LanguageModel(checkpoint, values, renamed(checkpoint, {"": ""}))
        engine = TransformersEngine(
            model,
            text_tokenizer or tokenizer(),
            device=as_device("auto"),
            dtype=dtype,
            config=settings,
        )
    try:
        yield engine
    finally:
        asyncio.run(engine.close())


def tokenizer(vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a vocabulary of the model's size; only decoding matters here."""
    words = {f"Ġword{token_id}": token_id for token_id in range(vocab_size)}
    backend = Tokenizer(models.BPE(vocab=words, merges=[]))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]


def report(measured: dict[str, list[float]], work: Workload) -> str:
    """Write the ratios, each taken within its round."""
    num = len(work.prompts)
    num_tokens = num * work.num_new
    rate = spread([num_tokens / seconds for seconds in measured["together"]], 1)

    def of(name: str, base: str) -> str:
        return spread(ratios(measured[name], measured[base]))

    rows = [
        (f"{num} together, tokens/s", rate, ""),
        (f"{num} together, of a bare padded batch's tokens/s", of("padded", "together"), ">= 0.8"),
        (f"{num} together, times one after another", of("sequential", "together"), ">= 3.5"),
        ("1 alone, of the time of `generate`", of("alone", "generate"), "<= 1.1"),
        (f"first token next to {num - 1} others, later by steps", spread(measured["late"]), "<= 2"),
    ]
    return markdown_table(["", "median (min..max)", "wanted"], rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--layers", type=int, default=SMOLLM2_135M["num_hidden_layers"])
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=[*range(32, 96, 8)],
        help="length of each prompt, in tokens (2 to 16 prompts)",
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    options = parser.parse_args()
    shape = TINY if options.quick else SMOLLM2_135M | {"num_hidden_layers": options.layers}
    rounds, lengths = 1 if options.quick else options.rounds, options.lengths
    work = Workload.draw(lengths, 8 if options.quick else 64)
    # Every round has the same prompts, of which nothing may be reused.
    settings = TransformersEngineConfig(prefix_caching=False)
    with running_engine(shape, getattr(torch, options.dtype), settings) as made:
        engine, bare = Engine(made, work), Bare(made._model, work.num_new)
        bare.decode(work.prompts)  # warm
        measured = interleave(
            rounds,
            {
                "padded": lambda: bare.decode(work.prompts),
                "together": engine.together,
                "sequential": engine.one_after_another,
                "generate": lambda: bare.generate(work.prompts[-1:]),
                "alone": engine.alone,
                "late": engine.late_by_steps,
            },
        )
    print("## The embedded engine\n")
    print(
        f"A random Llama of SmolLM2-135M's shape with {shape['num_hidden_layers']} layers in "
        f"{options.dtype}, {len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens, "
        f"{work.num_new} new tokens each, arriving {SPACING_S * 1000:.0f} ms after one another, "
        "next to the same prompts as one padded batch in a plain loop over transformers' forward, "
        "which starts with all of them. Ratios are taken within a round.\n"
    )
    print(report(measured, work))


if __name__ == "__main__":
    main()

"""The time of a decoding step with a JSON schema, next to that of a free answer."""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import string
import time
from contextlib import aclosing
from functools import partial
from itertools import pairwise

import torch
from _smollm2 import SMOLLM2_135M, VOCAB_SIZE
from engine import TINY, Workload, running_engine
from measure import interleave, markdown_table, ratios, spread
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlcore.engines.base import EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.grammar import Grammar
from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.prompts.tokenization import TokenizedPrompt

GRAMMAR = Grammar.json_schema(
    {
        "type": "array",
        "minItems": 100,
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 40},
                "kind": {"enum": ["circle", "square", "triangle"]},
                "box": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 0, "maximum": 1000},
                    "minItems": 4,
                    "maxItems": 4,
                },
                "notes": {"anyOf": [{"type": "string", "maxLength": 100}, {"type": "null"}]},
            },
            "required": ["name", "kind", "box", "notes"],
            "additionalProperties": False,
        },
    }
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer of random words, most of them after a space."""
    draw = random.Random(0)  # noqa: S311  (no cryptography)
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    while len(vocabulary) < VOCAB_SIZE:
        word = "".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9)))
        vocabulary.setdefault("Ġ" * (draw.random() < 0.6) + word, len(vocabulary))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        unk_token="<unk>",  # noqa: S106  (no password)
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
    )


def step_time(engine: TransformersEngine, work: Workload, grammar: Grammar | None) -> float:
    """Return the median time between two tokens after the first one, in seconds."""

    async def moments(prompt: tuple[int, ...]) -> list[float]:
        config = GenerationConfig(
            max_new_tokens=work.num_new,
            ignore_eos=True,
            grammar=grammar,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            random_seed=0,
        )
        request = EngineRequest(TokenizedPrompt(prompt), (), config)
        async with aclosing(engine.generate(request)) as outputs:
            return [time.perf_counter() async for _ in outputs]

    async def body() -> list[list[float]]:
        return await asyncio.gather(*map(moments, work.prompts))

    steps = []
    for times in asyncio.run(body()):
        assert len(times) == work.num_new
        steps += [after - before for before, after in pairwise(times)]
    return statistics.median(steps)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    options = parser.parse_args()
    rounds, shape = (1, TINY) if options.quick else (options.rounds, SMOLLM2_135M)
    num_new = 8 if options.quick else 64
    settings = TransformersEngineConfig(prefix_caching=False)
    rows = []
    with running_engine(shape, torch.float32, settings, word_tokenizer()) as engine:
        for batch in (1, 8):
            work = Workload.draw(range(32, 32 + batch), num_new)
            step_time(engine, work, GRAMMAR)  # compiles the grammar
            measured = interleave(
                rounds,
                {
                    "free": partial(step_time, engine, work, None),
                    "schema": partial(step_time, engine, work, GRAMMAR),
                },
            )
            milliseconds = [seconds * 1000 for seconds in measured["free"]]
            rows.append((
                f"batch of {batch}",
                spread(milliseconds, 1),
                spread(ratios(measured["schema"], measured["free"])),
                "<= 1.1",
            ))  # fmt: skip
    print("## Structured output\n")
    print(
        f"The median time of a step after the first token, with and without a JSON schema, for a "
        f"random Llama of SmolLM2-135M's shape in float32 with {VOCAB_SIZE} tokens of text, "
        f"{num_new} sampled tokens an answer. Ratios are taken within a round.\n"
    )
    header = ["", "free answer, ms", "with a schema, times that", "wanted"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()

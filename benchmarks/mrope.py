"""A decoding step with M-RoPE next to one of the same text model without it."""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import torch
from _smollm2 import SMOLLM2_135M, VOCAB_SIZE
from engine import TINY, tokenizer
from measure import interleave, markdown_table, ratios, spread
from transformers import CONFIG_MAPPING, PreTrainedModel, PreTrainedTokenizerBase

from vlcore._utils.device import as_device
from vlcore.engines.base import EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.stop_conditions import StopConditions
from vlcore.engines.transformers.batch import Batch
from vlcore.engines.transformers.prompt_chunk import PromptChunk
from vlcore.engines.transformers.sampler import choose_tokens
from vlcore.engines.transformers.sequence import TransformersSequence
from vlcore.language.causal_lm import build_causal_lm
from vlcore.language.prompt_inputs import PromptInputs, grid_positions
from vlcore.prompts.tokenization import Span, TokenizedPrompt

GRID = (1, 8, 8)
NUM_PROMPTS = 8


def random_model(model_type: str, shape: dict[str, Any]) -> PreTrainedModel:
    """Build a model whose weights depend on the shape only."""
    head_dim = shape["hidden_size"] // shape["num_attention_heads"]
    halves = head_dim // 2
    sections = [halves - 2 * (halves * 3 // 8), halves * 3 // 8, halves * 3 // 8]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    if model_type == "qwen2":
        del rope["mrope_section"]
    config_class: Any = CONFIG_MAPPING[model_type]
    torch.manual_seed(0)
    model: Any = build_causal_lm(config_class(**shape, rope_parameters=rope))
    model.to(as_device("auto")).eval()
    return model  # type: ignore[no-any-return]


class Decoding:
    """A batch of prompts with an image each, after their prefill.

    Args:
        model: the language model.
        has_positions: whether the embeddings of images have positions on three axes.
        words: decodes the tokens.
        num_new: maximum length of the answers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        has_positions: bool,
        words: PreTrainedTokenizerBase,
        num_new: int,
    ) -> None:
        device = as_device("auto")
        self._batch = Batch(model, device, NUM_PROMPTS)
        num_rows = GRID[1] * GRID[2]
        draw = torch.Generator().manual_seed(0)
        chunks = []
        for number in range(NUM_PROMPTS):
            text: list[int] = torch.randint(VOCAB_SIZE, (20 + number,), generator=draw).tolist()
            ids = (*text[:10], *[0] * num_rows, *text[10:])
            prompt = TokenizedPrompt(ids, (Span(10, 10 + num_rows, 0, 0),))
            rows = torch.randn(num_rows, model.config.hidden_size, generator=draw).to(device)
            inputs = grid_positions(prompt, [GRID]) if has_positions else PromptInputs()
            config = GenerationConfig(max_new_tokens=num_new, ignore_eos=True)
            sequence = TransformersSequence(
                EngineRequest(prompt, (rows,), config, inputs=inputs),
                0,
                stop_conditions=StopConditions(frozenset(), {}),
                tokenizer=words,
                max_length=len(ids) + num_new,
                vocab_size=VOCAB_SIZE,
                device=device,
                emit=lambda _: None,
            )
            chunks.append(PromptChunk((sequence,), range(len(ids))))
        longest = max(chunk.first.max_num_tokens for chunk in chunks)
        self._batch.memory.max_cached_tokens = NUM_PROMPTS * longest
        with torch.inference_mode():
            self._advance(self._batch.prefill(chunks))

    def steps(self, num_steps: int) -> float:
        """Time decoding steps, in seconds."""
        with torch.inference_mode():
            started = time.perf_counter()
            for _ in range(num_steps):
                self._batch.set_next_token_ids(self._advance(self._batch.decode()))
            return time.perf_counter() - started

    def _advance(self, step: Any) -> torch.Tensor:
        chosen = choose_tokens(step.logits, [sequence.sampler for sequence in step.sequences])
        chosen_ids = chosen.tolist()
        for sequence, token_id, logits in zip(step.sequences, chosen_ids, step.logits, strict=True):
            sequence.accept(token_id, logits)
        return chosen


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    options = parser.parse_args()
    rounds, shape, num_steps = (1, TINY, 2) if options.quick else (options.rounds, SMOLLM2_135M, 12)
    words = tokenizer()
    num_new = (rounds + 1) * num_steps + 2
    contenders = {
        name: Decoding(
            random_model(model_type, shape),
            has_positions=model_type != "qwen2",
            words=words,
            num_new=num_new,
        )
        for name, model_type in (("without", "qwen2"), ("with", "qwen2_5_vl_text"))
    }
    for decoding in contenders.values():
        decoding.steps(num_steps)  # warm
    measured = interleave(
        rounds, {name: partial(one.steps, num_steps) for name, one in contenders.items()}
    )
    per_step = [1000 * seconds / num_steps for seconds in measured["without"]]
    rows = [
        ("a step of 8 sequences without M-RoPE, ms", spread(per_step, 1), ""),
        (
            "with M-RoPE, times as long",
            spread(ratios(measured["with"], measured["without"]), 3),
            "<= 1.05",
        ),
    ]
    print("## Decoding with M-RoPE\n")
    print(
        f"Random models of SmolLM2-135M's shape in float32, Qwen2.5-VL's text model and Qwen2, "
        f"{NUM_PROMPTS} sequences with an image of {GRID[1]} x {GRID[2]} embeddings each, "
        f"{num_steps} decoding steps a round. Ratios are taken within a round.\n"
    )
    print(markdown_table(["", "median (min..max)", "wanted"], rows))


if __name__ == "__main__":
    main()

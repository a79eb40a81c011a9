"""The running batch with several kinds of models, compared with transformers' generation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_requests import CPU, request
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from vlcore.engines.base import EngineRequest
from vlcore.engines.stop_conditions import StopConditions
from vlcore.engines.transformers.batch import Batch
from vlcore.engines.transformers.prompt_chunk import PromptChunk
from vlcore.engines.transformers.sampler import choose_tokens
from vlcore.engines.transformers.sequence import TransformersSequence
from vlcore.errors import EngineUnavailableError

SHAPE: dict[str, Any] = {
    "vocab_size": 700,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "no groups": ("llama", {"num_key_value_heads": 4}),
    "groups of heads": ("llama", {}),
    "a sliding window": ("mistral", {"sliding_window": 8}),
    "some layers slide": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "two rotary bases": ("gemma3_text", {"sliding_window": 8, "sliding_window_pattern": 2}),
    "experts": ("mixtral", {"num_local_experts": 4, "sliding_window": None}),
}


def build(kind: str, **changes: Any) -> PreTrainedModel:
    model_type, options = MODELS[kind]
    config = CONFIG_MAPPING[model_type](**SHAPE | options | changes)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, attn_implementation="sdpa"
    )
    model.train(False)
    return model


class Run:
    """A batch driven step by step."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.batch = Batch(model, CPU, max_num_seqs=8)
        self.batch.memory.max_cached_tokens = 2000
        self._tokenizer = tokenizer

    def sequence(
        self, asked: EngineRequest, answers: dict[int, list[int]], name: int
    ) -> TransformersSequence:
        answers[name] = []
        return TransformersSequence(
            asked,
            0,
            stop_conditions=StopConditions(frozenset(), {}),
            tokenizer=self._tokenizer,
            max_length=256,
            vocab_size=700,
            device=CPU,
            emit=lambda output: answers[name].extend(output.token_ids),  # type: ignore[union-attr]
        )

    @torch.inference_mode()
    def advance(self, new_sequences: list[TransformersSequence]) -> None:
        self.batch.remove_finished()
        steps = (
            [
                self.batch.prefill(
                    [PromptChunk((one,), range(one.num_tokens)) for one in new_sequences]
                )
            ]
            if new_sequences
            else []
        )
        if self.batch.sequences and not new_sequences:
            steps.append(self.batch.decode())
        for step in steps:
            assert step is not None
            chosen = choose_tokens(step.logits, [sequence.sampler for sequence in step.sequences])
            rows = zip(step.sequences, chosen.tolist(), step.logits, strict=True)
            for sequence, token_id, logits in rows:
                sequence.accept(token_id, logits)

    def generate(self, token_ids: tuple[int, ...], num_new: int) -> list[int]:
        with torch.inference_mode():
            generated: list[int] = self.model.generate(  # type: ignore[operator]
                input_ids=torch.tensor([token_ids]),
                attention_mask=torch.ones(1, len(token_ids), dtype=torch.long),
                max_new_tokens=num_new,
                min_new_tokens=num_new,
                do_sample=False,
                pad_token_id=0,
            )[0, len(token_ids) :].tolist()
        return generated


@pytest.mark.parametrize("kind", MODELS)
def test_sequences_of_a_changing_batch_match_transformers(
    kind: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    run = Run(build(kind), tokenizer)
    # (prompt, answer) in tokens, by the step at which they are added; some end before others.
    arrivals = {0: [(5, 20), (12, 4)], 3: [(1, 30)], 6: [(21, 9), (3, 14)], 9: [(30, 12)]}
    answers: dict[int, list[int]] = {}
    asked: dict[int, EngineRequest] = {}
    for step in range(60):
        joining = []
        for num_tokens, num_new in arrivals.get(step, []):
            name = len(asked)
            asked[name] = request(num_tokens, seed=name, max_new_tokens=num_new)
            joining.append(run.sequence(asked[name], answers, name))
        run.advance(joining)
    assert not [sequence for sequence in run.batch.sequences if not sequence.is_finished]
    for name, one in asked.items():
        num_new = one.config.max_new_tokens
        # transformers forbids its end token to get there; so does no option here.
        expected = run.generate(one.prompt.token_ids, num_new)
        if 2 not in answers[name]:
            assert answers[name] == expected
    assert sum(2 not in answer for answer in answers.values()) >= 5


def test_unsupported_layers_are_refused() -> None:
    model = build("groups of heads")
    model.config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    with pytest.raises(EngineUnavailableError, match="this model has chunked_attention"):
        Batch(model, CPU, max_num_seqs=2)


def test_the_size_of_a_cached_token_is_measured(tokenizer: PreTrainedTokenizerBase) -> None:
    run = Run(build("groups of heads"), tokenizer)
    with torch.inference_mode():
        # 3 layers, keys and values, 2 heads of 16 numbers of 4 bytes
        run.batch.measure_cache()
        assert run.batch.bytes_per_token == 3 * 2 * 2 * 16 * 4
        assert run.batch.bytes_per_sequence == 0


def test_the_cache_is_doubled_within_the_budget(tokenizer: PreTrainedTokenizerBase) -> None:
    run = Run(build("groups of heads"), tokenizer)
    answers: dict[int, list[int]] = {}

    def join(num_tokens: int, num_new: int) -> int:
        asked = request(num_tokens, max_new_tokens=num_new)
        run.advance([run.sequence(asked, answers, len(answers))])
        return run.batch._cache.num_columns

    run.batch.memory.max_cached_tokens = 500
    assert join(10, 20) == 64
    assert join(10, 30) == 192
    assert join(10, 50) == 384
    assert join(10, 50) == 500
    assert join(100, 20) == 500  # without a margin
    assert join(100, 20) == 500  # the others are moved together


def test_the_needed_room_is_the_sum_of_maximum_lengths(tokenizer: PreTrainedTokenizerBase) -> None:
    run = Run(build("groups of heads"), tokenizer)
    run.batch.memory.max_cached_tokens = 100
    answers: dict[int, list[int]] = {}

    def sequence(num_tokens: int, num_new: int) -> TransformersSequence:
        asked = request(num_tokens, max_new_tokens=num_new)
        return run.sequence(asked, answers, len(answers))

    assert run.batch.has_room([sequence(20, 30), sequence(20, 28), sequence(1, 1)])
    assert not run.batch.has_room([sequence(20, 30), sequence(20, 28), sequence(1, 2)])
    run.advance([sequence(20, 30)])
    assert run.batch.has_room([sequence(40, 10)])
    assert not run.batch.has_room([sequence(40, 11)])
    run.batch.max_num_seqs = 1
    assert not run.batch.has_room([sequence(1, 1)])

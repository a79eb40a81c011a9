"""Language models that need more than embeddings, compared with transformers' generation."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from crowds import crowd, keep_company
from engine_requests import CPU, answer, chunks, run
from tiny_families import (
    FAMILIES,
    BuiltLanguageModel,
    FamilyRequest,
    TinyFamily,
    tiny_family,
)
from torch.testing import assert_close
from transformers import PreTrainedTokenizerBase

from vlcore.engines.base import EngineRequest
from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.errors import EngineError
from vlcore.language.prompt_inputs import PromptInputs
from vlcore.prompts.tokenization import TokenizedPrompt

_TEXT_ONLY = ("lfm2", "deepseek_v3", "gemma2", "gemma4_text", "gpt_oss")


_FAST = ("qwen3_vl", "qwen3_5", "gemma3", "gemma2")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in _FAST else pytest.mark.slow) for name in FAMILIES
    ],
)
def family(request: pytest.FixtureRequest) -> TinyFamily:
    return tiny_family(request.param)


@pytest.fixture
def engine(family: TinyFamily, tokenizer: PreTrainedTokenizerBase) -> Iterator[TransformersEngine]:
    config = TransformersEngineConfig(max_num_seqs=6, max_cached_tokens=500, max_prefill_tokens=90)
    made = TransformersEngine(
        BuiltLanguageModel(family), tokenizer, device=CPU, dtype=torch.float32, config=config
    )
    yield made
    asyncio.run(made.close())


def watch_forwards(engine: TransformersEngine) -> list[tuple[int, bool]]:
    """Record how many sequences every forward has, and whether it computes prompts."""
    forwards: list[tuple[int, bool]] = []

    def record(module: Any, args: Any, options: dict[str, Any]) -> None:
        is_prefill = "inputs_embeds" in options
        forwards.append((len(options["inputs_embeds" if is_prefill else "input_ids"]), is_prefill))

    engine._model.register_forward_pre_hook(record, with_kwargs=True)
    return forwards


def test_logits_of_a_prompt_match_transformers(
    family: TinyFamily, engine: TransformersEngine
) -> None:
    asked = family.request(19, [] if family.name in _TEXT_ONLY else [3, 4], max_new_tokens=1)
    config = replace(asked.request.config, output_logits="all")

    async def body() -> None:
        (output,) = await chunks(engine, replace(asked.request, config=config))
        assert_close(output.prompt_logits, asked.expected_logits(), rtol=1e-4, atol=1e-4)

    run(body)


def test_answers_match_transformers_in_any_company(
    family: TinyFamily, engine: TransformersEngine
) -> None:
    drawn: dict[int, FamilyRequest] = {}

    def draw_request(number: int, rng: random.Random) -> EngineRequest:
        images = [[], [number], [number, number + 1], []][number % 4]
        if family.name in _TEXT_ONLY:
            images = []
        # Prompts of one length can share a forward pass whatever the layers are.
        num_tokens = 9 if number < 6 else rng.randrange(2, 20)
        asked = family.request(num_tokens, images, max_new_tokens=rng.randrange(2, 16))
        return drawn.setdefault(number, asked).request

    async def body() -> None:
        arrivals = crowd(12, 0, draw_request)
        expected = [asked.expected() for asked in drawn.values()]
        assert len({token for tokens in expected for token in tokens}) > 30
        forwards = watch_forwards(engine)
        answers = await keep_company(engine, arrivals)
        for arrival, wanted, got in zip(arrivals, expected, answers, strict=True):
            assert got == wanted[: arrival.num_chunks]
        assert max(size for size, is_prefill in forwards if is_prefill) > 1
        assert max(size for size, is_prefill in forwards if not is_prefill) > 3

    run(body)


def test_answers_that_share_a_prompt_match_those_that_do_not(
    family: TinyFamily, engine: TransformersEngine
) -> None:
    images = [] if family.name in _TEXT_ONLY else [3]
    options: dict[str, Any] = {"do_sample": True, "random_seed": 5, "max_new_tokens": 6}
    one = family.request(7, images, **options).request
    three = family.request(7, images, **options, n=3).request

    async def body() -> None:
        expected = await answer(engine, one)
        outputs = await chunks(engine, three)
        first = [output.token_ids for output in outputs if output.choice == 0]
        assert tuple(token for ids in first for token in ids) == expected

    run(body)


def continued(asked: FamilyRequest, token_ids: Sequence[int]) -> FamilyRequest:
    """Append tokens to a prompt."""
    prompt, family = asked.request.prompt, asked.family
    longer = TokenizedPrompt((*prompt.token_ids, *token_ids), prompt.spans)
    inputs = family._inputs(longer, [family._encode(seed)[1] for seed in asked.images])
    return replace(asked, request=replace(asked.request, prompt=longer, inputs=inputs))


def test_answers_do_not_depend_on_chunks_and_reused_beginnings(
    family: TinyFamily, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine, whole = (
        TransformersEngine(
            BuiltLanguageModel(family),
            tokenizer,
            device=CPU,
            dtype=torch.float32,
            config=TransformersEngineConfig(max_num_seqs=4, max_cached_tokens=500, **options),
        )
        for options in ({"max_prefill_tokens": 5}, {"prefix_caching": False})
    )
    images = [] if family.name in _TEXT_ONLY else [3, 4]
    first = family.request(19, images)
    keys = tuple(map(str, images))
    first = replace(first, request=replace(first.request, row_keys=keys))
    has_states = family.name in ("qwen3_5", "lfm2")

    async def body() -> None:
        forwards = watch_forwards(engine)
        outputs = await chunks(engine, first.request)
        answered = tuple(token for output in outputs for token in output.token_ids)
        num_prefills = sum(is_prefill for _, is_prefill in forwards)
        assert answered == await answer(whole, first.request)
        assert num_prefills == 1 if has_states or family.name == "paligemma" else num_prefills > 3
        turns = [
            continued(first, (*answered, *range(20 * count, 21 * count))) for count in (1, 4, 9)
        ]
        results = await asyncio.gather(*(chunks(engine, turn.request) for turn in turns))
        for turn, outputs in zip(turns, results, strict=True):
            got = tuple(one.token_ids[0] for one in outputs)
            assert got == await answer(whole, turn.request)
            is_reused = not has_states and family.name != "paligemma"
            num_before = len(first.request.prompt.token_ids) + len(answered) - 1
            # The last token of the answer is computed with the first turn that continues it.
            assert outputs[0].cached_tokens in ((num_before, num_before + 1) if is_reused else (0,))
        await whole.close()
        await engine.close()

    run(body)


@pytest.mark.parametrize(
    ("name", "feature"),
    [("qwen2_5_vl", "mrope"), ("qwen3_vl", "deepstack"), ("gemma3", "attention_groups")],
)
def test_every_feature_has_an_effect(
    name: str, feature: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The comparison with transformers would fail without it."""
    family = tiny_family(name)
    asked = family.request(9, [5, 7], max_new_tokens=12)
    rows, inputs = asked.request.rows, asked.request.inputs
    if feature == "deepstack":
        width = family.model.config.hidden_size
        rows = tuple(torch.cat([one[:, :width], 0 * one[:, width:]], dim=1) for one in rows)
    else:
        inputs = PromptInputs()
    without = EngineRequest(asked.request.prompt, rows, asked.request.config, inputs=inputs)
    engine = TransformersEngine(
        BuiltLanguageModel(family), tokenizer, device=CPU, dtype=torch.float32
    )

    async def body() -> None:
        assert await answer(engine, asked.request) == asked.expected()
        assert await answer(engine, without) != asked.expected()
        await engine.close()

    run(body)


def test_inputs_that_the_model_cannot_use_fail_alone(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    family = tiny_family("gemma3")
    engine = TransformersEngine(
        BuiltLanguageModel(family), tokenizer, device=CPU, dtype=torch.float32
    )
    asked = family.request(6, [1])
    positions = torch.zeros(3, len(asked.request.prompt.token_ids), dtype=torch.int64)
    odd = EngineRequest(
        asked.request.prompt,
        asked.request.rows,
        asked.request.config,
        inputs=PromptInputs(positions),
    )

    async def body() -> None:
        failed, good = await asyncio.gather(
            answer(engine, odd), answer(engine, asked.request), return_exceptions=True
        )
        assert isinstance(failed, EngineError)
        assert good == asked.expected()
        await engine.close()

    run(body)

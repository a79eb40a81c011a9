"""The conversations of a family, answered by transformers and by a pipeline of vlcore."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vlcore
from transformers_families.checkpoints import TinyCheckpoint, write_checkpoint
from transformers_families.conversations import (
    NEW_TOKENS,
    Messages,
    ReferencePrompt,
    conversations,
    reference_prompt,
)
from transformers_families.families import FAMILIES
from vlcore.engines.base import EngineOutput, EngineRequest

PLUGIN = "vl-plugin-transformers"
_MARGIN = 1e-3
"""Least difference between the logits of the two most likely tokens of an answer."""
_NUM_SEEDS = 20


@dataclass(frozen=True)
class FamilyReference:
    """A tiny checkpoint of a family, and what transformers makes of its conversations."""

    checkpoint: TinyCheckpoint
    prompts: Mapping[str, Messages]
    expected: Mapping[str, ReferencePrompt]


@dataclass(frozen=True)
class Answer:
    """What a pipeline made of a conversation."""

    request: EngineRequest | None
    """What its engine received; ``None`` if the conversation was refused before that."""
    token_ids: list[int]
    error: Exception | None


def make_reference(
    directory: Path,
    name: str,
    *,
    text_type: str | None = None,
    prompts: Mapping[str, Messages] | None = None,
) -> FamilyReference:
    """Write a checkpoint, and let transformers answer the conversations.

    The weights are drawn again while two tokens of an answer are almost equally likely, or a token
    of an image is among them, whose embedding transformers replaces.
    """
    first = FAMILIES[name].seed
    for seed in range(first, first + _NUM_SEEDS):
        shutil.rmtree(directory, ignore_errors=True)
        checkpoint = write_checkpoint(directory, name, seed, text_type=text_type)
        asked = conversations(checkpoint) if prompts is None else prompts
        expected = {
            label: reference_prompt(checkpoint, messages) for label, messages in asked.items()
        }
        answers = expected.values()
        is_decisive = min(prompt.margin for prompt in answers) > _MARGIN
        if is_decisive and not any(
            checkpoint.row_ids.intersection(prompt.answer) for prompt in answers
        ):
            return FamilyReference(checkpoint, asked, expected)
    raise AssertionError(f"in {name}, two tokens are almost equally likely with any seed")


def answer_concurrently(directory: Path, prompts: Mapping[str, Messages]) -> dict[str, Answer]:
    """Let a pipeline answer conversations at the same time, and record what its engine gets."""
    labels = list(prompts)
    requests: dict[str, EngineRequest] = {}
    with vlcore.pipeline(
        directory, plugin=PLUGIN, engine="transformers", device="cpu", dtype="float32"
    ) as pipe:
        generate = pipe.engine.generate

        def record(request: EngineRequest) -> AsyncGenerator[EngineOutput]:
            requests[labels[request.config.random_seed or 0]] = request
            return generate(request)

        pipe.engine.generate = record  # type: ignore[method-assign]

        async def answer_all() -> list[Any]:
            config = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
            return await asyncio.gather(
                *(
                    pipe.ainfer(messages, config | {"random_seed": number})
                    for number, messages in enumerate(prompts.values())
                ),
                return_exceptions=True,
            )

        responses = asyncio.run(answer_all())
    answers = {}
    for label, response in zip(labels, responses, strict=True):
        is_error = isinstance(response, Exception)
        answers[label] = Answer(
            requests.get(label),
            [] if is_error else list(response.token_ids),
            response if is_error else None,
        )
    return answers

"""The conversations of a family, answered by transformers and by a pipeline of vlcore."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vlcore
from transformers_families.checkpoints import write_checkpoint
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

    name: str
    directory: Path
    prompts: Mapping[str, Messages]
    expected: Mapping[str, ReferencePrompt]


@dataclass(frozen=True)
class Answer:
    """What a pipeline made of a conversation."""

    request: EngineRequest
    token_ids: list[int]


def make_reference(directory: Path, name: str) -> FamilyReference:
    """Write a checkpoint, and let transformers answer the conversations.

    The weights are drawn again while two tokens of an answer are almost equally likely.
    """
    first = FAMILIES[name].seed
    for seed in range(first, first + _NUM_SEEDS):
        shutil.rmtree(directory, ignore_errors=True)
        checkpoint = write_checkpoint(directory, name, seed)
        prompts = conversations(checkpoint)
        expected = {
            label: reference_prompt(checkpoint, messages) for label, messages in prompts.items()
        }
        if min(prompt.margin for prompt in expected.values()) > _MARGIN:
            return FamilyReference(name, directory, prompts, expected)
    raise AssertionError(f"in {name}, two tokens are almost equally likely with any seed")


def answer_concurrently(reference: FamilyReference) -> dict[str, Answer]:
    """Let a pipeline answer the conversations at the same time, and record what its engine gets."""
    labels = list(reference.prompts)
    requests: dict[str, EngineRequest] = {}
    with vlcore.pipeline(
        reference.directory, plugin=PLUGIN, engine="transformers", device="cpu", dtype="float32"
    ) as pipe:
        generate = pipe.engine.generate

        def record(request: EngineRequest) -> AsyncGenerator[EngineOutput]:
            requests[labels[request.config.random_seed or 0]] = request
            return generate(request)

        pipe.engine.generate = record  # type: ignore[method-assign]

        async def answer_all() -> list[Any]:
            return await asyncio.gather(
                *(
                    pipe.ainfer(
                        reference.prompts[label],
                        {
                            "max_new_tokens": NEW_TOKENS,
                            "min_new_tokens": NEW_TOKENS,
                            "random_seed": number,
                        },
                    )
                    for number, label in enumerate(labels)
                )
            )

        responses = asyncio.run(answer_all())
    return {
        label: Answer(requests[label], list(response.token_ids))
        for label, response in zip(labels, responses, strict=True)
    }

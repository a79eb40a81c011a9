"""Images and text with every plugin on TurboMind, compared with the embedded engine."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from large_heads import FAMILIES, write_checkpoint
from PIL import Image

from vlcore.engines.base import Engine, EngineOutput, EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.engines.turbomind.engine import TurbomindEngine
from vlcore.engines.turbomind.support import unsupported_reason
from vlcore.inference.pipeline import Pipeline
from vlcore.inference.request_runner import RequestRunner
from vlcore.inference.response import Session
from vlcore.language.view_cache import ViewCache
from vlcore.plugins.stages import ModelStages
from vlcore.prompts.tokenization import PromptTokenizer
from vlcore.vision.encoder import ImageEncoder

if importlib.util.find_spec("lmdeploy") is None:
    pytest.skip("lmdeploy is not installed: make test-turbomind", allow_module_level=True)

if TYPE_CHECKING:
    from turbomind_stand_in import Communicator

RED = Image.new("RGB", (60, 40), "red")
BLUE = Image.new("RGB", (40, 50), "blue")
PROMPTS: list[Any] = ["Hello", ("What is this?", RED), ("Compare them.", [RED, BLUE])]


class RoundedEngine(TransformersEngine):
    """The embedded engine in float32, with the rows rounded as TurboMind's are."""

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput]:
        rows = tuple(rows.half().float() for rows in request.rows)
        return super().generate(replace(request, rows=rows))


class Pair:
    """One checkpoint on both engines, which take the rows of one vision model."""

    def __init__(self, directory: Path) -> None:
        self.stages = ModelStages(directory)
        self.language_model = self.stages.language_model()
        self.tokenizer = self.language_model.tokenizer()
        self.view = ViewCache(directory.parent / "views").get(self.language_model)

    def pipeline(self, engine: Engine) -> Pipeline:
        encoder = ImageEncoder(self.stages.vision_model("cpu", torch.float32))
        template = self.stages.chat_template()
        return Pipeline(RequestRunner(encoder, template, PromptTokenizer(self.tokenizer), engine))

    def embedded(self) -> Pipeline:
        return self.pipeline(
            RoundedEngine(
                self.language_model,
                self.tokenizer,
                device=torch.device("cpu"),
                dtype=torch.float32,
            )
        )

    def turbomind(self) -> Pipeline:
        return self.pipeline(
            TurbomindEngine(
                self.language_model,
                self.tokenizer,
                self.view,
                device=torch.device("cuda", 0),
                dtype=torch.float16,
            )
        )


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(write_checkpoint(request.param, tmp_path_factory.mktemp("models") / request.param))


@pytest.fixture(scope="module")
def communicators(pair: Pair) -> Iterator[list[Communicator]]:
    from turbomind_stand_in import on_cpu

    with on_cpu(pair.view) as made:
        yield made


@pytest.fixture(scope="module")
def turbomind(pair: Pair, communicators: list[Communicator]) -> Iterator[Pipeline]:
    with pair.turbomind() as pipe:
        yield pipe
    assert communicators[-1].faults == []


@pytest.fixture(scope="module")
def embedded(pair: Pair) -> Iterator[Pipeline]:
    with pair.embedded() as pipe:
        yield pipe


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.4},
        {"min_new_tokens": 6, "bad_token_ids": (5, 6, 7)},
    ],
    ids=lambda options: "-".join(options) or "greedy",
)
def test_answers_are_those_of_the_embedded_engine(
    turbomind: Pipeline, embedded: Pipeline, options: dict[str, Any]
) -> None:
    config = GenerationConfig(max_new_tokens=12, **options)
    answers = turbomind(PROMPTS, config)
    for answer, expected in zip(answers, embedded(PROMPTS, config), strict=True):
        assert answer.raise_for_error().token_ids == expected.token_ids
        assert answer.text == expected.text
        assert answer.finish_reason == expected.finish_reason
        assert answer.input_token_len == expected.input_token_len


def test_a_conversation_is_the_same_as_with_the_embedded_engine(
    turbomind: Pipeline, embedded: Pipeline
) -> None:
    def converse(pipe: Pipeline) -> list[tuple[int, ...]]:
        session, seen = Session(), []
        for prompt in (("What is this?", RED), "Why?", ("And this?", BLUE)):
            pipe.chat(prompt, session, {"max_new_tokens": 6, "ignore_eos": True})
            assert session.response is not None
            seen.append(session.response.token_ids)
        return seen

    assert converse(turbomind) == converse(embedded)


def test_embeddings_are_sent_at_the_positions_of_the_images(
    turbomind: Pipeline, communicators: list[Communicator]
) -> None:
    turbomind(PROMPTS[2], {"max_new_tokens": 1})
    asked = communicators[-1].asked[-1]
    assert asked.embeddings is not None
    assert asked.embeddings.dtype is torch.float16
    assert len(asked.ranges) == 2
    assert sum(end - begin for begin, end in asked.ranges) == len(asked.embeddings)


def test_concurrent_requests_have_the_answers_of_single_ones(turbomind: Pipeline) -> None:
    prompts = [PROMPTS[number % 3] for number in range(16)]
    options = [{"max_new_tokens": 2 + number % 5, "ignore_eos": True} for number in range(16)]

    async def together() -> list[Any]:
        asked = zip(prompts, options, strict=True)
        return list(await asyncio.gather(*(turbomind.ainfer(*one) for one in asked)))

    alone = [turbomind(*one) for one in zip(prompts, options, strict=True)]
    assert [one.token_ids for one in asyncio.run(together())] == [one.token_ids for one in alone]


def test_turbomind_supports_every_plugin(pair: Pair) -> None:
    cuda = torch.device("cuda", 0)
    assert unsupported_reason(pair.language_model, cuda, torch.float16) is None

"""A remote engine gives what its replica's engine gives, in answers, errors and cancellations."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
import torch
from checkpoints import write_llava
from engine_requests import CPU, request
from local_handle import LocalHandle, LocalRef, Replica
from tiny_families import BuiltLanguageModel, tiny_family
from waits import until

from vlcore.cluster.engine_replica import EngineReplica
from vlcore.cluster.messages import EngineFacts
from vlcore.cluster.packing import pack
from vlcore.cluster.remote_encoder import RemoteRows
from vlcore.cluster.remote_engine import RemoteEngine
from vlcore.engines.base import EngineOutput, EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.grammar import Grammar
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.errors import GrammarError, OptionError, PluginContractError
from vlcore.plugins.stages import load_language_model
from vlcore.server.errors import ApiError


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_language_model(write_llava(tmp_path_factory.mktemp("model") / "llava"))


def start(language_model: Any, tokenizer: Any = None) -> TransformersEngine:
    return TransformersEngine(
        language_model, tokenizer or language_model.tokenizer(), device=CPU, dtype=torch.float32
    )


def remote(engine: Any, *others: Any) -> tuple[RemoteEngine, list[Replica]]:
    replicas = [Replica(EngineReplica(one)) for one in (engine, *others)]
    handle: Any = LocalHandle(replicas)
    return RemoteEngine(handle, EngineFacts.of(engine)), replicas


def by_reference(asked: EngineRequest) -> EngineRequest:
    rows: Any = tuple(RemoteRows(LocalRef(pack(one)), len(one)) for one in asked.rows)
    return EngineRequest(asked.prompt, rows, asked.config, asked.stop, asked.inputs, asked.row_keys)


async def outputs(engine: Any, asked: EngineRequest) -> tuple[str, list[int], list[Any]]:
    chunks: list[EngineOutput] = [chunk async for chunk in engine.generate(asked)]
    token_ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
    details = [detail for chunk in chunks for detail in chunk.logprobs]
    return "".join(chunk.text for chunk in chunks), token_ids, details


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 2, "do_sample": True, "random_seed": 5, "temperature": 1.2},
        {"logprobs": 3, "repetition_penalty": 1.3},
        {"stop": ("e",), "bad_words": ["a"]},
        {"grammar": Grammar.choice(["yes", "no"]), "max_new_tokens": 20},
    ],
)
def test_the_answer_is_that_of_the_engine(language_model: Any, options: dict[str, Any]) -> None:
    async def body() -> None:
        engine = start(language_model)
        far, _ = remote(engine)
        asked = request(20, image_rows=4, **options)
        await far.prepare(asked.config)
        assert await outputs(far, by_reference(asked)) == await outputs(engine, asked)
        assert far.stats().num_prompt_tokens == 24
        await engine.close()

    asyncio.run(body())


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
def test_positions_groups_and_deepstack_embeddings_reach_the_engine(
    name: str, language_model: Any
) -> None:
    family = tiny_family(name)

    async def body() -> None:
        model = BuiltLanguageModel(family)
        engine = start(model, language_model.tokenizer())
        far, _ = remote(engine)
        assert far.row_width == model.row_width
        asked = family.request(19, [3, 4], max_new_tokens=6)
        _, token_ids, _ = await outputs(far, by_reference(asked.request))
        assert tuple(token_ids) == asked.expected()
        await engine.close()

    asyncio.run(body())


def test_an_error_of_the_engine_arrives_as_it_was_raised(language_model: Any) -> None:
    async def body() -> None:
        engine = start(language_model)
        far, _ = remote(engine)
        wrong = request(20, image_rows=4)
        wrong = EngineRequest(wrong.prompt, (torch.zeros(4, 5),), wrong.config)
        with pytest.raises(PluginContractError, match="must have the shape"):
            await outputs(far, by_reference(wrong))
        with pytest.raises(GrammarError):
            await far.prepare(GenerationConfig(grammar=Grammar.regex("(")))
        with pytest.raises(OptionError, match="logit_bias"):
            await far.prepare(GenerationConfig(logit_bias={10**6: 1.0}))
        await engine.close()

    asyncio.run(body())


def test_closing_the_stream_frees_the_replica(language_model: Any) -> None:
    async def body() -> None:
        engine = start(language_model)
        far, _ = remote(engine)
        async with aclosing(far.generate(request(20, max_new_tokens=400))) as chunks:
            await anext(chunks)
            assert far.stats().num_running == 1
        assert far.stats().num_running == 0
        await until(lambda: not engine.stats().num_running)
        await engine.close()

    asyncio.run(body())


@pytest.mark.parametrize("num_values", [0, 1])
def test_a_replica_that_dies_ends_the_stream_with_an_error_for_the_client(
    language_model: Any, num_values: int
) -> None:
    async def body() -> None:
        engine = start(language_model)
        far, (replica,) = remote(engine)
        replica.dies_after = num_values + 1
        with pytest.raises(ApiError, match="has died") as caught:
            await outputs(far, request(20, max_new_tokens=400))
        assert caught.value.status == 503
        assert "Retry-After" in caught.value.headers
        assert far.stats().num_running == 0
        await engine.close()

    asyncio.run(body())

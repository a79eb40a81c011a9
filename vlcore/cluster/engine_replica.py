"""``EngineReplica``: a language model on any engine, without templates, tokenizer and images."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from vlcore._utils.device import as_device, choose_dtype
from vlcore.cluster.arguments import ClusterArguments
from vlcore.cluster.messages import EngineFacts, PromptMessage
from vlcore.cluster.packing import PackedRows, unpack
from vlcore.cluster.stream import gather_ready
from vlcore.engines.base import Engine, EngineOutput, EngineRequest, EngineStats
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.selection import select_engine
from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.engines.turbomind.engine import TurbomindEngine
from vlcore.errors import EngineClosedError, OptionError, VlcoreError
from vlcore.plugins.stages import ModelStages


class EngineReplica:
    """Continues prompts that an ingress has tokenized.

    Args:
        engine: The engine; closed with the replica.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Embeddings are read where the object store keeps them, which no one may write to.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")

    def facts(self) -> EngineFacts:
        """Return what the ingress must know."""
        return EngineFacts.of(self._engine)

    def stats(self) -> EngineStats:
        """Take a snapshot of the engine's load."""
        return self._engine.stats()

    async def prepare(self, config: GenerationConfig) -> VlcoreError | None:
        """Check a request's options and compile its grammar, before anything is computed."""
        try:
            await self._engine.prepare(config)
        except VlcoreError as error:
            return error
        return None

    async def generate(
        self, message: PromptMessage, *rows: PackedRows
    ) -> AsyncGenerator[tuple[EngineOutput, ...] | VlcoreError]:
        """Continue a prompt.

        Args:
            message: The request.
            rows: The embeddings of each of its images.

        Yields:
            The outputs that are there, or the error that ends them.
        """
        try:
            request = EngineRequest(
                message.prompt,
                tuple(map(unpack, rows)),
                message.config,
                message.stop,
                message.inputs,
                message.row_keys,
            )
            async with aclosing(gather_ready(self._engine.generate(request))) as batches:
                async for outputs in batches:
                    yield outputs
        except VlcoreError as error:
            yield error

    def check_health(self) -> None:
        """Raise an error if the engine can serve no further requests: the replica is replaced.

        Raises:
            EngineClosedError: The engine has failed.
        """
        if (failure := self._engine.failure) is not None:
            raise EngineClosedError(failure)

    async def close(self) -> None:
        """Cancel all requests, and free the model."""
        await self._engine.close()


def load_engine(arguments: ClusterArguments) -> Engine:
    """Load the language model of a replica, and start its engine."""
    stages = ModelStages(arguments.model, plugin=arguments.plugin, revision=arguments.revision)
    device = as_device(arguments.engine_device)
    language_model = stages.language_model()
    selected = select_engine(
        arguments.engine,
        language_model,
        device=device,
        dtype=choose_dtype(arguments.dtype, device, stages.checkpoint.config),
        config=_engine_config(arguments.engine, arguments.engine_config),
        self_test=arguments.self_test,
    )
    return selected.start(language_model.tokenizer())


def _engine_config(engine: str, values: Mapping[str, Any] | None) -> Any:
    """Turn the fields of an engine's settings into those settings.

    Raises:
        OptionError: A field is unknown, or has a wrong value.
    """
    if values is None:
        return None
    try:
        if engine == TransformersEngine.name:
            return TransformersEngineConfig(**values)
        if engine == TurbomindEngine.name:
            from lmdeploy import TurbomindEngineConfig

            return TurbomindEngineConfig(**values)
    except TypeError as error:
        raise OptionError(f"engine_config of the {engine} engine: {error}") from error
    return dict(values)

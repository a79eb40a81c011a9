"""``RemoteEngine``: the engine of a request runner, on the replicas of a deployment."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any, cast

from ray.serve.handle import DeploymentHandle

from vlcore.cluster.failures import ReplicaDiedError, translated, unavailable
from vlcore.cluster.messages import EngineFacts, PromptMessage
from vlcore.cluster.remote_encoder import RemoteRows
from vlcore.engines.base import Engine, EngineOutput, EngineRequest, EngineStats
from vlcore.engines.generation import GenerationConfig
from vlcore.errors import VlcoreError

_MAX_TOKENS_BY_VALUE = 100_000
"""Maximum length of a prompt that gRPC sends, in messages of at most 4 MiB. It is faster than Ray's
own calls, which alone resolve references to embeddings."""


class RemoteEngine(Engine):
    """Continues prompts elsewhere; image embeddings reach the engine by reference.

    Args:
        handle: The deployment of the language models.
        facts: What its replicas have in common.
    """

    def __init__(self, handle: DeploymentHandle[Any], facts: EngineFacts) -> None:
        generate = handle.options(method_name="generate", stream=True)
        self._generate_by_reference = generate.options(_by_reference=True)
        self._generate_by_value = generate.options(_by_reference=False)
        self._prepare = handle.options(method_name="prepare", _by_reference=True)
        self._row_width = facts.row_width
        self._num_running = 0
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0
        # The class attributes of an engine that runs here.
        vars(self).update(
            {
                name: getattr(facts, name)
                for name in EngineFacts.__annotations__
                if name != "row_width"
            }
        )

    @property
    def row_width(self) -> int:
        """Width of an image's embedding."""
        return self._row_width

    async def prepare(self, config: GenerationConfig) -> None:
        """Check a request's options here, and its grammar in a replica."""
        await super().prepare(config)
        if config.grammar is None:
            return
        with _reported(), translated("language model"):
            error = await self._prepare.remote(config)
        if error is not None:
            raise error

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput]:
        """Continue a prompt in a replica, which is freed when the iterator is closed.

        Raises:
            ApiError: The replica died (503). What it had generated is lost with it.
        """
        refs = [cast("RemoteRows", rows).ref for rows in request.rows]
        self._num_running += 1
        is_short = not refs and len(request.prompt.token_ids) <= _MAX_TOKENS_BY_VALUE
        generate = self._generate_by_value if is_short else self._generate_by_reference
        response = None
        try:
            with _reported(), translated("language model"):
                response = generate.remote(PromptMessage.of(request), *refs)
                is_first = True
                async for outputs in response:
                    if isinstance(outputs, VlcoreError):
                        raise outputs
                    if is_first:
                        is_first = False
                        self._num_prompt_tokens += len(request.prompt.token_ids)
                        self._num_cached_tokens += outputs[0].cached_tokens
                    for output in outputs:
                        yield output
                response = None
        finally:
            self._num_running -= 1
            if response is not None:
                response.cancel()

    def stats(self) -> EngineStats:
        """Count the requests of this ingress that run or wait, and the tokens of its prompts."""
        return EngineStats(self._num_running, 0, self._num_prompt_tokens, self._num_cached_tokens)

    async def close(self) -> None:
        """Leave the replicas alone: other ingresses use them too."""


@contextmanager
def _reported() -> Iterator[None]:
    """Tell the client of a replica that died."""
    try:
        yield
    except ReplicaDiedError:
        raise unavailable(
            "the replica of the language model that worked on this request has died"
        ) from None

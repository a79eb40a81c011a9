"""The three deployments of a cluster, and the application of Ray Serve that they form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from vlcore.cluster.arguments import ClusterArguments
from vlcore.cluster.encoder_replica import EncoderReplica, load_encoder
from vlcore.cluster.engine_replica import EngineReplica, load_engine
from vlcore.cluster.ingress import create_ingress
from vlcore.server.log_config import set_up_log

_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
"""Sends the same image to the same encoder, whose cache then has its embeddings."""
_NUM_VIRTUAL_NODES = 1000
"""Number of points of each encoder in the ring of hashes. With Ray's 100, one of two encoders would
often have to compute three fifths of all images."""


class _Encoder(EncoderReplica):
    def __init__(self, arguments: ClusterArguments) -> None:
        set_up_log()
        super().__init__(load_encoder(arguments))

    async def __del__(self) -> None:  # Serve awaits it, also after a failed start
        if vars(self):
            await self.close()


class _LanguageModel(EngineReplica):
    def __init__(self, arguments: ClusterArguments) -> None:
        set_up_log()
        super().__init__(load_engine(arguments))

    async def __del__(self) -> None:  # Serve awaits it, also after a failed start
        if vars(self):
            await self.close()


class _Ingress:
    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        arguments: ClusterArguments,
        encoder: DeploymentHandle[Any],
        language_model: DeploymentHandle[Any],
    ) -> None:
        set_up_log()
        self._app = await create_ingress(arguments, encoder, language_model)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app


ENCODER = serve.deployment(
    name="Encoder",
    max_ongoing_requests=64,
    request_router_config={
        "request_router_class": _ROUTER,
        "request_router_kwargs": {"num_virtual_nodes": _NUM_VIRTUAL_NODES},
    },
    graceful_shutdown_timeout_s=60,
)(_Encoder)
LANGUAGE_MODEL = serve.deployment(
    name="LanguageModel", max_ongoing_requests=64, graceful_shutdown_timeout_s=300
)(_LanguageModel)
# The server's own bound, max_requests, answers in the shape of OpenAI's errors: Serve's is higher.
INGRESS = serve.deployment(
    name="Ingress", max_ongoing_requests=1024, graceful_shutdown_timeout_s=300
)(serve.ingress()(_Ingress))


def build_application(args: Mapping[str, Any]) -> Any:
    """Compose the application; see :func:`vlcore.cluster.build`."""
    arguments = ClusterArguments.from_mapping(args)
    encoder = ENCODER.bind(arguments)
    language_model = LANGUAGE_MODEL.bind(arguments)
    return INGRESS.bind(arguments, encoder, language_model)

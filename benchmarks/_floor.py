"""An application of Ray Serve that answers at once: what Serve itself adds to a first token."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from ray import serve

ROUTE = "/floor"
_app = FastAPI()


@_app.get("/")
async def answer() -> PlainTextResponse:
    """Answer without work."""
    return PlainTextResponse("x")


class Floor:
    """An ingress that computes nothing."""


def application() -> Any:
    """Compose the application."""
    deployment = serve.deployment(ray_actor_options={"num_cpus": 0})
    return deployment(serve.ingress(_app)(Floor)).bind()

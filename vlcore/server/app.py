"""The application: its paths, and what they share."""

from __future__ import annotations

import time

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response

from vlcore import _version
from vlcore.inference.pipeline import Pipeline
from vlcore.server.admission import Admission
from vlcore.server.api_docs import ERRORS, add_reference, errors
from vlcore.server.chat_handler import ChatHandler
from vlcore.server.errors import ApiError, as_api_error, stopping
from vlcore.server.metrics import Metrics
from vlcore.server.middleware import RequestGuardMiddleware
from vlcore.server.schema import ChatCompletion, Model, ModelList
from vlcore.server.settings import ServerSettings
from vlcore.server.web_ui import add_page


def create_app(
    pipeline: Pipeline, settings: ServerSettings, admission: Admission | None = None
) -> FastAPI:
    """Make the application that serves a model.

    Args:
        pipeline: the model.
        settings: how it is served.
        admission: counts the requests; whoever stops the server tells it.
    """
    admission = Admission(settings.max_requests) if admission is None else admission
    metrics = Metrics(pipeline.encoder_stats, pipeline.engine.stats, lambda: admission.num_requests)

    app = FastAPI(
        title="vlcore",
        summary=f"OpenAI's chat API for {settings.model_name}.",
        version=_version.__version__,
        docs_url=None,  # both load scripts from elsewhere
        redoc_url=None,
    )
    _add_api(app, pipeline, settings, admission, metrics)
    _add_probes(app, admission, metrics)
    add_page(app, settings.max_body_bytes)
    _add_error_handlers(app)
    add_reference(app, settings)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    app.add_middleware(RequestGuardMiddleware, settings=settings)
    return app


def _add_api(
    app: FastAPI,
    pipeline: Pipeline,
    settings: ServerSettings,
    admission: Admission,
    metrics: Metrics,
) -> None:
    model = Model(id=settings.model_name, created=int(time.time()))

    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={
            200: {
                "description": "The answers; with stream: true as server-sent events.",
                "content": {"text/event-stream": {}},
            },
            **ERRORS,
        },
        tags=["chat"],
    )
    async def chat_completions(request: Request) -> Response:
        """Go on with a conversation."""
        return ChatHandler(request, pipeline, settings, admission, metrics)

    @app.get("/v1/models", responses=errors(401, 421, 431), tags=["models"])
    async def models() -> ModelList:
        """List the model that is served."""
        return ModelList(data=[model])

    @app.get(
        "/v1/models/{name:path}",
        responses=errors(400, 401, 404, 421, 431),
        tags=["models"],
    )
    async def one_model(name: str) -> Model:
        """Describe the model that is served."""
        if name != settings.model_name:
            raise ApiError(
                404, "model_not_found", f"the model {name[:200]!r} is not served here", "model"
            )
        return model


def _add_probes(app: FastAPI, admission: Admission, metrics: Metrics) -> None:
    @app.get("/health", responses=errors(421, 431), tags=["probes"])
    async def health() -> dict[str, str]:
        """Say that the server lives."""
        return {"status": "ok"}

    @app.get("/ready", responses=errors(421, 431, 503), tags=["probes"])
    async def ready() -> dict[str, str]:
        """Say whether it takes requests."""
        if admission.is_stopping:
            raise stopping()
        return {"status": "ready"}

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=errors(421, 431),
        tags=["probes"],
    )
    async def prometheus() -> Response:
        """Count, for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def failure(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        message = {
            404: f"there is nothing at {request.url.path[:200]!r}: /docs lists what there is",
            405: f"{request.method} is not for {request.url.path[:200]!r}",
        }.get(error.status_code, str(error.detail))
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        headers = dict(error.headers or {})
        return ApiError(error.status_code, code, message, headers=headers).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return ApiError(400, "invalid_value", f"{place}: {first['msg']}", place).response()

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

"""The ASGI application: its routes, and the state that they share."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response

from vlcore import _version
from vlcore.server.admission import Admission
from vlcore.server.api_docs import ERROR_RESPONSES, add_api_docs, error_responses
from vlcore.server.chat_handler import ChatHandler, ChatResources
from vlcore.server.connections import Uploads
from vlcore.server.errors import ApiError, as_api_error, stopping_error
from vlcore.server.metrics import Metrics
from vlcore.server.middleware import RequestGuardMiddleware
from vlcore.server.schema.completion import ChatCompletion
from vlcore.server.schema.models import Model, ModelList
from vlcore.server.served_model import ServedModel
from vlcore.server.settings import ServerSettings
from vlcore.server.web_ui import add_web_ui

_NUM_PARSERS = 2
"""Number of threads that parse request bodies."""


def create_app(
    pipeline: ServedModel, settings: ServerSettings, admission: Admission | None = None
) -> FastAPI:
    """Create the application that serves a model.

    Args:
        pipeline: The model.
        settings: The server's settings.
        admission: Counts the requests; its ``is_stopping`` is set when the server stops.
    """
    admission = Admission(settings.max_requests) if admission is None else admission
    metrics = Metrics(pipeline.encoder_stats, pipeline.engine.stats, lambda: admission.num_requests)

    app = FastAPI(
        title="vlcore",
        summary=f"OpenAI-compatible chat API for {settings.model_name}.",
        version=_version.__version__,
        docs_url=None,  # FastAPI's own pages load scripts from other servers
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    resources = ChatResources(
        pipeline,
        settings,
        admission,
        metrics,
        Uploads(settings.max_uploads),
        ThreadPoolExecutor(_NUM_PARSERS, "vlcore-parse"),
    )
    _add_api(app, resources)
    _add_probes(app, pipeline, admission, metrics)
    add_web_ui(app, settings.max_body_bytes)
    _add_error_handlers(app)
    add_api_docs(app, settings)
    app.add_middleware(RequestGuardMiddleware, settings=settings)
    if settings.allowed_origins:  # outside of the guard: a preflight has no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's JavaScript client sends several of its own
            expose_headers=["retry-after"],
        )
    return app


def _add_api(app: FastAPI, resources: ChatResources) -> None:
    settings = resources.settings
    served_model = Model(id=settings.model_name, created=int(time.time()))

    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={
            200: {
                "description": "The completion; with stream: true as server-sent events.",
                "content": {"text/event-stream": {}},
            },
            **ERROR_RESPONSES,
        },
        tags=["chat"],
    )
    async def chat_completions(request: Request) -> Response:
        """Generate the next message of a conversation."""
        return ChatHandler(request, resources)

    @app.get("/v1/models", responses=error_responses(401, 421, 431), tags=["models"])
    async def models() -> ModelList:
        """List the served model."""
        return ModelList(data=[served_model])

    @app.get(
        "/v1/models/{name:path}",
        responses=error_responses(400, 401, 404, 421, 431),
        tags=["models"],
    )
    async def model(name: str) -> Model:
        """Describe the served model."""
        if name != settings.model_name:
            raise ApiError(
                404, "model_not_found", f"the model {name[:200]!r} is not served here", "model"
            )
        return served_model


def _add_probes(
    app: FastAPI, pipeline: ServedModel, admission: Admission, metrics: Metrics
) -> None:
    @app.get("/health", responses=error_responses(421, 431), tags=["probes"])
    async def health() -> dict[str, str]:
        """Report that the process is alive."""
        return {"status": "ok"}

    @app.get("/ready", responses=error_responses(421, 431, 503), tags=["probes"])
    async def ready() -> dict[str, str]:
        """Report whether the server accepts requests."""
        if failure := pipeline.engine.failure:
            raise ApiError(503, "engine_failed", failure)
        if admission.is_stopping:
            raise stopping_error()
        return {"status": "ready"}

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=error_responses(421, 431),
        tags=["probes"],
    )
    async def prometheus_metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path[:200]
        message = {
            404: f"the path {path!r} does not exist: /docs lists those that do",
            405: f"the method {request.method} is not allowed for {path!r}",
        }.get(error.status_code, str(error.detail))
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        headers = dict(error.headers or {})
        return ApiError(error.status_code, code, message, headers=headers).response()

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(map(str, first["loc"]))
        return ApiError(400, "invalid_value", f"{param}: {first['msg']}", param).response()

    @app.exception_handler(Exception)
    async def internal_error(_: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

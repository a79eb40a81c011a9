"""The OpenAPI document of the application, and ``/docs``, its human-readable form."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from jinja2 import Environment
from starlette.responses import HTMLResponse, Response

from vlcore.server.schema.errors import ErrorResponse
from vlcore.server.schema.request import ChatRequest
from vlcore.server.settings import ServerSettings

_TEMPLATE = Path(__file__).with_name("openapi.html")

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "The request is invalid.",
        401: "The API key is missing or wrong.",
        404: "The model does not exist.",
        408: "The body took too long to arrive.",
        413: "The body is too large.",
        415: "The body is not JSON.",
        421: "The Host header names another server.",
        429: "There are too many requests.",
        431: "The request line and headers are too large.",
        500: "The server failed.",
        503: "The server is stopping.",
        504: "The request exceeded its deadline.",
    }.items()
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Select entries of ``ERROR_RESPONSES``."""
    return {status: ERROR_RESPONSES[status] for status in statuses}


def add_api_docs(app: FastAPI, settings: ServerSettings) -> None:
    """Complete the OpenAPI document of an application, and serve it as JSON and as HTML.

    Both are rendered once, here: a request costs no more than sending them.

    Args:
        app: The application, with all its routes.
        settings: The server's settings; they decide whether the document mentions API keys.
    """
    document = _complete(app.openapi(), has_keys=bool(settings.api_keys))
    if settings.root_path:
        document["servers"] = [{"url": settings.root_path}]
    template = Environment(autoescape=True).from_string(_TEMPLATE.read_text("utf-8"))
    html = template.render(document=document)
    style = html.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    json_document = json.dumps(document, ensure_ascii=False).encode()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """Return the document as HTML, without scripts and resources from other servers."""
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        """Return the document."""
        return Response(json_document, media_type="application/json")


def _complete(document: dict[str, Any], *, has_keys: bool) -> dict[str, Any]:
    """Add what FastAPI cannot know: the request body, which is read later, and the API keys."""
    schema = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = document["components"]["schemas"]
    schemas |= schema.pop("$defs")
    schemas["ChatRequest"] = schema
    reference = {"$ref": "#/components/schemas/ChatRequest"}
    document["paths"]["/v1/chat/completions"]["post"]["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": reference}},
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's default; this server returns 400
            if has_keys and path.startswith("/v1/"):
                operation["security"] = [{"key": []}]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    if has_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document

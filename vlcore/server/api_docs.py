"""The OpenAPI document of the application, and ``/docs``, a page of it for people."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from jinja2 import Environment
from starlette.responses import HTMLResponse

from vlcore.server.schema import ChatRequest, ErrorResponse
from vlcore.server.settings import ServerSettings

_PAGE = Path(__file__).with_name("openapi.html")

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "The request cannot be answered.",
        401: "A key is missing or wrong.",
        404: "There is no such model.",
        408: "The body came too slowly.",
        413: "The body is too large.",
        415: "The body is no JSON.",
        421: "The Host header names another server.",
        429: "Too many requests.",
        431: "The request's line and headers are too large.",
        500: "The server failed.",
        503: "The server is stopping.",
        504: "The answer took too long.",
    }.items()
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Take some of ``ERRORS``."""
    return {status: ERRORS[status] for status in statuses}


def add_reference(app: FastAPI, settings: ServerSettings) -> None:
    """Complete the document of an application, and show it at ``/docs``.

    Args:
        app: has all its paths.
        settings: whether there are keys.
    """
    write = app.openapi

    def document() -> dict[str, Any]:
        return app.openapi_schema or _complete(write(), has_keys=bool(settings.api_keys))

    app.openapi = document  # type: ignore[method-assign]

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """Show the document, with nothing from elsewhere and no script."""
        page = Environment(autoescape=True).from_string(_PAGE.read_text("utf-8"))
        html = page.render(document=app.openapi())
        style = html.partition("<style>")[2].partition("</style>")[0]
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = (
            f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})


def _complete(document: dict[str, Any], *, has_keys: bool) -> dict[str, Any]:
    """Say what FastAPI does not know: the body, which is read later, and who checks the keys."""
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
            operation["responses"].pop("422", None)  # FastAPI's own error; here it is 400
            if has_keys and path.startswith("/v1/"):
                operation["security"] = [{"key": []}]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    if has_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document

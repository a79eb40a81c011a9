"""The page at ``/`` to try the model in a browser."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response

from vlcore.server.errors import ApiError

_FOLDER = Path(__file__).with_name("static")
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data: blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


def add_page(app: FastAPI, max_body_bytes: int) -> None:
    """Serve the page at ``/`` and its files below ``/page``; no path of a request is opened.

    Args:
        app: serves the API too.
        max_body_bytes: of one request; the page tells before it sends more.
    """
    files = {path.name: path for path in _FOLDER.iterdir() if path.suffix in _MEDIA_TYPES}
    answers = {name: (path.read_bytes(), _MEDIA_TYPES[path.suffix]) for name, path in files.items()}
    html, html_type = answers.pop("index.html")
    html = html.replace(b"{max_body_bytes}", str(max_body_bytes).encode())

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(html, media_type=html_type, headers=_HEADERS)

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in answers:
            raise ApiError(404, "not_found", f"the page has no file {name[:200]!r}")
        content, media_type = answers[name]
        return Response(content, media_type=media_type, headers=_HEADERS)

"""The web page at ``/`` to try the model in a browser."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response

from vlcore.server.errors import ApiError

_STATIC = Path(__file__).with_name("static")
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


def add_web_ui(app: FastAPI, max_body_bytes: int) -> None:
    """Serve the page at ``/`` and its files below ``/page``.

    The files are read once, here: no path of a request is opened.

    Args:
        app: The application to extend.
        max_body_bytes: The server's bound on a request body, which the page checks before it sends.
    """
    paths = [path for path in _STATIC.iterdir() if path.suffix in _MEDIA_TYPES]
    files = {path.name: (path.read_bytes(), _MEDIA_TYPES[path.suffix]) for path in paths}
    html, html_type = files.pop("index.html")
    html = html.replace(b"{max_body_bytes}", str(max_body_bytes).encode())

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(html, media_type=html_type, headers=_HEADERS)

    @app.get("/page/{name}", include_in_schema=False)
    async def static_file(name: str) -> Response:
        if name not in files:
            raise ApiError(404, "not_found", f"the page has no file {name[:200]!r}")
        content, media_type = files[name]
        return Response(content, media_type=media_type, headers=_HEADERS)

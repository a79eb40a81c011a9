"""Who may ask: the key, and the name of the host."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vlcore.server.errors import ApiError, head_too_large
from vlcore.server.settings import ServerSettings

_API = "/v1"


class RequestGuardMiddleware:
    """Lets requests through that may ask, before any of their body is read.

    A page of another site can make a browser send requests to a server on the same machine. By a
    name of its own that leads to the loopback it cannot pass the check of the host's name.

    Args:
        app: what is guarded.
        settings: keys and names.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings
        self._keys = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as failure:
                await failure.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        # A head that comes in one piece is read whole, however long.
        num_bytes = len(scope["raw_path"]) + len(scope["query_string"])
        num_bytes += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if num_bytes > self._settings.max_head_bytes:
            raise head_too_large(self._settings.max_head_bytes)
        headers = Headers(scope=scope)
        names = self._settings.host_names
        if names and _host_name(headers.get("host", "")) not in names:
            raise ApiError(
                421,
                "unknown_host",
                "the Host header names another server: this one is "
                f"{', '.join(sorted(names))} (allowed_hosts)",
            )
        path: str = scope["path"]
        if not (path == _API or path.startswith(f"{_API}/")):
            return
        if self._keys:
            self._check_key(headers.get("authorization"))

    def _check_key(self, header: str | None) -> None:
        scheme, _, key = (header or "").partition(" ")
        came = _digest(key.strip())
        # All are compared, each in constant time, so that the time tells nothing.
        matches = [hmac.compare_digest(came, known) for known in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401,
                "invalid_api_key",
                "a key is needed: Authorization: Bearer KEY"
                if header is None
                else "the API key is wrong",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _host_name(host: str) -> str:
    """Take the port off a ``Host`` header."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()

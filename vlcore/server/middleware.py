"""Access checks before a request is handled: the size of its head, its host and its API key."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vlcore.server.errors import ApiError, head_too_large_error
from vlcore.server.settings import ServerSettings

_API_PREFIX = "/v1"


class RequestGuardMiddleware:
    """Refuses requests that are not allowed, before any of their body is read.

    A web page can make a browser send requests to a server on the same machine. If it uses a DNS
    name of its own that resolves to the loopback address, the check of the ``Host`` header fails.

    Args:
        app: The guarded application.
        settings: The server's settings: API keys and host names.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings
        self._key_digests = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        # h11 accepts a head of any size if it arrives in one read.
        num_bytes = len(scope["raw_path"]) + len(scope["query_string"])
        num_bytes += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if num_bytes > self._settings.max_head_bytes:
            raise head_too_large_error(self._settings.max_head_bytes)
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
        if not (path == _API_PREFIX or path.startswith(f"{_API_PREFIX}/")):
            return
        if self._key_digests:
            self._check_key(headers.get("authorization"))

    def _check_key(self, header: str | None) -> None:
        scheme, _, key = (header or "").partition(" ")
        digest = _digest(key.strip())
        # All are compared, each in constant time, so that the duration discloses nothing.
        matches = [hmac.compare_digest(digest, known) for known in self._key_digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401,
                "invalid_api_key",
                "an API key is required: Authorization: Bearer KEY"
                if header is None
                else "the API key is wrong",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _host_name(host: str) -> str:
    """Return a ``Host`` header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()

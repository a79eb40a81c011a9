"""Access checks before a request is handled: the size of its head, its host and its API key."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlcore.server.errors import ApiError, head_too_large_error
from vlcore.server.settings import ServerSettings

_API_PREFIX = "/v1"
ADDRESSES = "vlcore.addresses"
"""Key of the application's state: the IP addresses that the server listens on."""


class RequestGuardMiddleware:
    """Refuses requests that are not allowed, before any of their body is read.

    A web page can make a browser send requests to a server on the same machine. If it uses a DNS
    name of its own that resolves to the loopback address, the check of the ``Host`` header fails.

    The middleware also resolves what does not concern the routes: the path prefix of a reverse
    proxy, an absolute URL as the request target, and HEAD as a GET without a body.

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
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_and_close(message: Message) -> None:
            """Close the connection after an error, whose request body may be unread."""
            if message["type"] == "http.response.start" and message["status"] >= 400:
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        sends = send_and_close if _has_body(scope) else send
        try:
            path = self._check(scope)
        except ApiError as error:
            await error.response()(scope, receive, sends)
            return
        root_path = self._settings.root_path
        scope = {**scope, "root_path": root_path, "path": root_path + path}
        if scope["method"] == "HEAD":  # the connection itself omits the body
            scope["method"] = "GET"
        await self._app(scope, receive, sends)

    def _check(self, scope: Scope) -> str:
        """Check the head of a request, and return its path below the prefix of the proxy."""
        # h11 accepts a head of any size if it arrives in one read.
        num_bytes = len(scope["raw_path"]) + len(scope["query_string"])
        num_bytes += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if num_bytes > self._settings.max_head_bytes:
            raise head_too_large_error(self._settings.max_head_bytes)
        headers = Headers(scope=scope)
        path: str = scope["path"]
        host = headers.get("host", "")
        if path[:7].lower() in ("http://", "https:/"):
            path, host = _split_target(path)
        names = self._settings.host_names(
            scope.get("state", {}).get(ADDRESSES, [self._settings.host])
        )
        if names and _host_name(host) not in names:
            raise ApiError(
                421,
                "unknown_host",
                "the Host header names another server: this one is "
                f"{', '.join(sorted(names))} (allowed_hosts)",
            )
        root_path = self._settings.root_path
        if root_path and (path == root_path or path.startswith(f"{root_path}/")):
            path = path[len(root_path) :] or "/"
        if self._key_digests and (path == _API_PREFIX or path.startswith(f"{_API_PREFIX}/")):
            self._check_key(headers.get("authorization"))
        return path

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


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _split_target(target: str) -> tuple[str, str]:
    """Split an absolute request target, which takes precedence over the ``Host`` header."""
    try:
        url = urlsplit(target)
    except ValueError:
        raise ApiError(400, "invalid_http", "the request target is not a valid URL") from None
    return url.path or "/", url.netloc.rpartition("@")[2]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _host_name(host: str) -> str:
    """Return a ``Host`` header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()

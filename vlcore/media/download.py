"""Downloads from http(s) URLs, within limits and from allowed addresses only.

Every redirect is checked like the first URL, and the connection is made to the address that was
checked: no name is resolved twice. A host that is refused cannot be distinguished from one that
does not exist, neither by the message nor by the time.
"""

from __future__ import annotations

import asyncio
import zlib
from contextlib import suppress
from functools import cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from vlcore._version import __version__
from vlcore.errors import ImageError, ImageLimitError, VideoError, VideoLimitError
from vlcore.media.kind import FileLimits
from vlcore.media.policy import DEFAULT_LIMITS, TRUSTING, ImageAccess
from vlcore.media.ssrf import checked_addresses, refused_host

if TYPE_CHECKING:
    import ssl

    import httpx2

_PORTS = {"http": 80, "https": 443}
_MAX_ADDRESSES = 3
"""The number of addresses of a host that are tried one after another."""
_SUCCESS = (200, 203)
_HEADERS = {
    # Some hosts of images refuse clients that do not say whom to contact.
    "User-Agent": f"vlcore/{__version__} (+https://github.com/vlcore/vlcore)",
    "Accept-Encoding": "identity",
}


async def download(
    url: str, name: str, limits: FileLimits = DEFAULT_LIMITS, access: ImageAccess = TRUSTING
) -> bytes:
    """Download a file. Cancelling closes the connection.

    Args:
        url: the URL.
        name: the name of the file in messages.
        limits: the limits of size and time, whose kind determines the errors.
        access: the allowed URLs.

    Raises:
        ImageDownloadError, VideoDownloadError: the URL is not allowed, or cannot be fetched, or not
            in time.
        ImageLimitError, VideoLimitError: the file is too large.
    """
    if not (access.trusts_caller or access.urls):
        raise limits.kind.download_error(
            f"{name} is a URL, and URLs are not allowed here: send a data: URL"
        )
    # In a thread: importing the HTTP client for the first time takes a quarter of a second.
    await asyncio.to_thread(tls_context, access.trusts_caller)
    import httpx2

    try:
        async with asyncio.timeout(limits.timeout_s):
            return await _follow(httpx2.URL(url), name, limits, access)
    except TimeoutError as error:
        raise limits.kind.download_error(
            f"{name} took longer than timeout_s={limits.timeout_s:g} of {limits.kind.limits}"
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        why = f": {error}" if access.trusts_caller else ""
        raise limits.kind.download_error(
            f"{name} could not be fetched: {type(error).__name__}{why}"
        ) from error
    except (ValueError, OSError) as error:
        if isinstance(error, ImageError | VideoError):
            raise
        raise limits.kind.download_error(
            f"{name} could not be fetched: {type(error).__name__}"
        ) from error


async def _follow(url: httpx2.URL, name: str, limits: FileLimits, access: ImageAccess) -> bytes:
    for _ in range(limits.max_redirects + 1):
        response = await _request(url, name, limits, access)
        if isinstance(response, bytes):
            return response
        if url.scheme == "https" and response.scheme == "http" and not access.trusts_caller:
            raise limits.kind.download_error(
                f"{name} could not be fetched: it redirects from https to http"
            )
        url = response
    raise limits.kind.download_error(
        f"{name} could not be fetched: TooManyRedirects, more than "
        f"max_redirects={limits.max_redirects} of {limits.kind.limits}"
    )


async def _request(
    url: httpx2.URL, name: str, limits: FileLimits, access: ImageAccess
) -> bytes | httpx2.URL:
    """Return the body of a URL, or the URL to which it redirects."""
    import httpx2

    if url.scheme not in _PORTS:
        raise limits.kind.download_error(
            f"{name} could not be fetched: {url.scheme!r} is neither http nor https"
        )
    if not url.host:
        raise limits.kind.download_error(f"{name} could not be fetched: its URL has no host")
    *others, last = (
        [url] if access.trusts_caller else await _with_addresses(url, name, limits, access)
    )
    for target in others:
        with suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
            return await _get(url, target, name, limits, access)
    return await _get(url, last, name, limits, access)


async def _get(
    url: httpx2.URL, target: httpx2.URL, name: str, limits: FileLimits, access: ImageAccess
) -> bytes | httpx2.URL:
    """Send the request for a URL to a target, which is its host or one of the host's addresses."""
    import httpx2

    headers = dict(_HEADERS)
    extensions: dict[str, Any] = {}
    if not access.trusts_caller:
        headers["Host"] = url.netloc.decode("ascii")
        if not _is_address(url.host):
            extensions["sni_hostname"] = url.raw_host.decode("ascii").removesuffix(".")
    async with (
        httpx2.AsyncClient(
            timeout=limits.connect_timeout_s,
            trust_env=access.trusts_caller,
            verify=tls_context(access.trusts_caller),
        ) as client,
        client.stream("GET", target, headers=headers, extensions=extensions) as response,
    ):
        if response.has_redirect_location:
            return url.join(response.headers["Location"])
        if response.status_code not in _SUCCESS:
            raise limits.kind.download_error(
                f"{name} could not be fetched: status {response.status_code}"
            )
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "", "gzip", "x-gzip"):
            raise limits.kind.download_error(
                f"{name} could not be fetched: its server sent the Content-Encoding {encoding!r}; "
                "only gzip is supported"
            )
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length[:20]) > limits.max_bytes:
            raise _too_large(name, limits)
        body = _GzipBody(name, limits) if encoding.endswith("gzip") else _Body(name, limits)
        async for chunk in response.aiter_raw():
            body.add(chunk)
        return body.content()


class _Body:
    """A response body, which is received in chunks up to the limit of its size."""

    def __init__(self, name: str, limits: FileLimits) -> None:
        self._name = name
        self._limits = limits
        self._received = bytearray()

    def add(self, chunk: bytes) -> None:
        """Append a chunk.

        Raises:
            ImageLimitError, VideoLimitError: the body is too large.
        """
        self._received += chunk
        if len(self._received) > self._limits.max_bytes:
            raise _too_large(self._name, self._limits)

    def content(self) -> bytes:
        """Return the complete body."""
        return bytes(self._received)


class _GzipBody(_Body):
    """A gzip-compressed body, as object stores return for files that were stored compressed."""

    def __init__(self, name: str, limits: FileLimits) -> None:
        super().__init__(name, limits)
        self._decompressor = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    def add(self, chunk: bytes) -> None:
        """Decompress and append a chunk; no more is inflated than the limit allows."""
        free = self._limits.max_bytes + 1 - len(self._received)
        try:
            super().add(self._decompressor.decompress(chunk, free))
        except zlib.error as error:
            raise self._limits.kind.download_error(
                f"{self._name} could not be fetched: its gzip compression is damaged: {error}"
            ) from error

    def content(self) -> bytes:
        """Return the complete body.

        Raises:
            ImageDownloadError, VideoDownloadError: the body ends early.
        """
        if not self._decompressor.eof:
            raise self._limits.kind.download_error(
                f"{self._name} could not be fetched: its gzip compression ends early"
            )
        return super().content()


async def _with_addresses(
    url: httpx2.URL, name: str, limits: FileLimits, access: ImageAccess
) -> list[httpx2.URL]:
    """Replace the host by each of its addresses, all of which are allowed."""
    if url.userinfo:
        raise limits.kind.download_error(
            f"{name} could not be fetched: a URL with a user or password is refused"
        )
    port = url.port or _PORTS[url.scheme]
    if access.allowed_ports is not None and port not in access.allowed_ports:
        raise limits.kind.download_error(f"{name} could not be fetched: port {port} is not allowed")
    host = url.raw_host.decode("ascii")
    try:
        async with asyncio.timeout(limits.connect_timeout_s):
            try:
                addresses = await checked_addresses(host, port, name, access, limits.kind)
            except limits.kind.download_error:
                if not _is_address(url.host):
                    # A resolver answers sooner for a name that it knows: every failure takes as
                    # long as the longest one.
                    await asyncio.Event().wait()
                raise
    except TimeoutError:
        raise refused_host(name, limits.kind) from None
    return [url.copy_with(host=address) for address in addresses[:_MAX_ADDRESSES]]


@cache
def tls_context(trusts_env: bool) -> ssl.SSLContext:
    """Import the HTTP client and load the certificates of authorities, once."""
    import httpx2

    return httpx2.create_ssl_context(trust_env=trusts_env)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _too_large(name: str, limits: FileLimits) -> ImageLimitError | VideoLimitError:
    return limits.kind.limit_error(
        f"{name} is larger than max_bytes={limits.max_bytes} of {limits.kind.limits}"
    )

"""The bytes behind an http(s) URL, within limits, from nowhere but an allowed address.

Every hop is checked anew, and the connection goes to the address that was checked: no name is
looked up twice. Messages say the same of every host that is refused or absent.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from vlcore.errors import ImageError, ImageLimitError
from vlcore.media.policy import DEFAULT_LIMITS, TRUSTING, ImageAccess, ImageLimits
from vlcore.media.ssrf import checked_addresses

if TYPE_CHECKING:
    import ssl

    import httpx2

_PORTS = {"http": 80, "https": 443}
_MAX_ADDRESSES = 3
"""Of one host, that are tried one after another."""


async def download(
    url: str, name: str, limits: ImageLimits = DEFAULT_LIMITS, access: ImageAccess = TRUSTING
) -> bytes:
    """Download a file; cancelling closes the connection.

    Args:
        url: where it lies.
        name: what messages call it.
        limits: what it may cost.
        access: where it may lie.

    Raises:
        ImageError: it may not be asked for, or cannot be fetched.
        ImageLimitError: it is larger or slower than a limit allows.
    """
    import httpx2

    if not (access.trusts_caller or access.urls):
        raise ImageError(f"{name} is a URL, and URLs are not allowed here: send a data: URL")
    try:
        async with asyncio.timeout(limits.timeout_s):
            return await _follow(httpx2.URL(url), name, limits, access)
    except TimeoutError as error:
        raise ImageLimitError(
            f"{name} took longer than timeout_s={limits.timeout_s:g} of vlcore.ImageLimits"
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        why = f": {error}" if access.trusts_caller else ""
        raise ImageError(f"{name} could not be fetched: {type(error).__name__}{why}") from error
    except (ValueError, OSError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name} could not be fetched: {type(error).__name__}") from error


async def _follow(url: httpx2.URL, name: str, limits: ImageLimits, access: ImageAccess) -> bytes:
    for _ in range(limits.max_redirects + 1):
        found = await _ask(url, name, limits, access)
        if isinstance(found, bytes):
            return found
        if url.scheme == "https" and found.scheme == "http" and not access.trusts_caller:
            raise ImageError(f"{name} could not be fetched: it redirects from https to http")
        url = found
    raise ImageLimitError(
        f"{name} could not be fetched: TooManyRedirects, more than "
        f"max_redirects={limits.max_redirects} of vlcore.ImageLimits"
    )


async def _ask(
    url: httpx2.URL, name: str, limits: ImageLimits, access: ImageAccess
) -> bytes | httpx2.URL:
    """Take one hop: the body, or where it lies instead."""
    import httpx2

    if url.scheme not in _PORTS:
        raise ImageError(f"{name} could not be fetched: {url.scheme!r} is neither http nor https")
    if not url.host:
        raise ImageError(f"{name} could not be fetched: its URL names no host")
    *others, last = [url] if access.trusts_caller else await _pinned(url, name, limits, access)
    for target in others:
        with suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
            return await _get(url, target, name, limits, access)
    return await _get(url, last, name, limits, access)


async def _get(
    url: httpx2.URL, target: httpx2.URL, name: str, limits: ImageLimits, access: ImageAccess
) -> bytes | httpx2.URL:
    """Get what a URL names from a target, which is its host or one of the host's addresses."""
    import httpx2

    headers = {"Accept-Encoding": "identity"}
    extensions: dict[str, Any] = {}
    if not access.trusts_caller:
        headers["Host"] = url.netloc.decode("ascii")
        if not _is_address(url.host):
            extensions["sni_hostname"] = url.raw_host.decode("ascii").removesuffix(".")
    context = await asyncio.to_thread(tls_context, access.trusts_caller)
    async with (
        httpx2.AsyncClient(
            timeout=limits.connect_timeout_s, trust_env=access.trusts_caller, verify=context
        ) as client,
        client.stream("GET", target, headers=headers, extensions=extensions) as response,
    ):
        if response.has_redirect_location:
            return url.join(response.headers["Location"])
        if response.status_code != 200:
            raise ImageError(f"{name} could not be fetched: status {response.status_code}")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ImageError(f"{name} could not be fetched: its server compressed it unasked")
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length[:20]) > limits.max_bytes:
            raise _too_large(name, limits)
        received = bytearray()
        async for chunk in response.aiter_raw():
            received += chunk
            if len(received) > limits.max_bytes:
                raise _too_large(name, limits)
        return bytes(received)


async def _pinned(
    url: httpx2.URL, name: str, limits: ImageLimits, access: ImageAccess
) -> list[httpx2.URL]:
    """Put each checked address in the place of the host."""
    if url.userinfo:
        raise ImageError(f"{name} could not be fetched: a URL with a user or password is refused")
    port = url.port or _PORTS[url.scheme]
    if access.allowed_ports is not None and port not in access.allowed_ports:
        raise ImageError(f"{name} could not be fetched: port {port} is not allowed")
    host = url.raw_host.decode("ascii")
    try:
        async with asyncio.timeout(limits.connect_timeout_s):
            addresses = await checked_addresses(host, port, name, access)
    except TimeoutError as error:
        raise ImageLimitError(
            f"{name} could not be fetched: finding its host took longer than "
            f"connect_timeout_s={limits.connect_timeout_s:g} of vlcore.ImageLimits"
        ) from error
    return [url.copy_with(host=address) for address in addresses[:_MAX_ADDRESSES]]


@cache
def tls_context(trusts_env: bool) -> ssl.SSLContext:
    """Read the certificates of the authorities, once: that takes tens of milliseconds."""
    import httpx2

    return httpx2.create_ssl_context(trust_env=trusts_env)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _too_large(name: str, limits: ImageLimits) -> ImageLimitError:
    return ImageLimitError(
        f"{name} is larger than max_bytes={limits.max_bytes} of vlcore.ImageLimits"
    )

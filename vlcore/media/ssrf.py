"""The addresses of a host, all of which are checked before a connection is made."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Hashable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from vlcore._utils.executor import DaemonExecutor
from vlcore._utils.fair_queue import current_client
from vlcore.errors import ImageDownloadError, VideoDownloadError
from vlcore.media.kind import IMAGE, MediaKind
from vlcore.media.policy import ImageAccess, IpAddress

_NUM_RESOLVERS = 32
_MAX_LOOKUPS_OF_CLIENT = _NUM_RESOLVERS // 4
"""Maximum number of names that are resolved at a time for one client. A name server that never
answers keeps a thread long after its download was given up."""
_POLL_S = 0.02
_resolvers = DaemonExecutor(_NUM_RESOLVERS, "vlcore-resolve")
"""A pool of its own, so that a resolver that hangs does not block anything else."""
_lookups = Counter[Hashable]()
"""Number of running lookups of each client."""
_lock = threading.Lock()

_NOT_GLOBAL = [
    ip_network(network)
    for network in (
        "0.0.0.0/8",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/23",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    )
]
"""Networks that some version of ``ipaddress`` considers global, although they have no public
servers. One of them contains Teredo addresses, which embed an IPv4 address."""

_NAT64 = ip_network("64:ff9b::/96")


def is_global(address: IpAddress) -> bool:
    """Return whether an address, and any address embedded in it, is globally routable."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        inner = _embedded(address)
        if inner is not None:
            return is_global(inner)
        if address not in ip_network("2000::/3"):
            return False
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved or address.is_unspecified)
        and not any(address in network for network in _NOT_GLOBAL)
    )


def is_allowed(address: IpAddress, host: str, access: ImageAccess) -> bool:
    """Return whether files may be downloaded for this host from this address."""
    if access.allows_host(host) or any(address in network for network in access.networks):
        return True
    return is_global(address)


async def resolve(host: str, port: int) -> list[str]:
    """Resolve the addresses of a host in a thread, when the client has one of its share."""
    client = current_client.get(None)
    # Polled, as lookups of other event loops may give back.
    while not _take_share(client):  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)
    lookup = _resolvers.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    lookup.add_done_callback(lambda _: _give_back(client))
    found = await asyncio.wrap_future(lookup)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _take_share(client: Hashable) -> bool:
    with _lock:
        is_free = _lookups[client] < _MAX_LOOKUPS_OF_CLIENT
        _lookups[client] += is_free
        return is_free


def _give_back(client: Hashable) -> None:
    with _lock:
        _lookups[client] -= 1
        if not _lookups[client]:
            del _lookups[client]


async def checked_addresses(
    host: str, port: int, name: str, access: ImageAccess, kind: MediaKind = IMAGE
) -> list[str]:
    """Resolve a host once, and return its addresses, the most likely to work first.

    Raises:
        ImageDownloadError: the host has no address, or one of them is not allowed; the error is
            that of the kind.
    """
    try:
        addresses = [ip_address(address) for address in await resolve(host, port)]
    except (OSError, ValueError):
        addresses = []
    if not addresses or not all(is_allowed(address, host, access) for address in addresses):
        raise refused_host(name, kind)
    # IPv4 comes first, because IPv6 may be unrouted.
    return [str(address) for address in sorted(addresses, key=lambda address: address.version)]


def refused_host(name: str, kind: MediaKind = IMAGE) -> ImageDownloadError | VideoDownloadError:
    """Return the error for a host that is refused, does not exist, or was not resolved in time.

    It is the same for all, so that it does not disclose whether a host of the network exists.
    """
    return kind.download_error(
        f"{name} could not be fetched: its host was not found or is not allowed"
    )


def _embedded(address: IPv6Address) -> IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None

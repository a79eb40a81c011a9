"""``ServerSettings``: the limits and options of the HTTP server."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields

from vlcore.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Limits and options of the HTTP server.

    Raises:
        OptionError: A setting is out of range.
    """

    model_name: str
    """Name of the model in requests and responses."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 23333
    """Port to listen on; 0 selects a free one."""
    api_keys: tuple[str, ...] = ()
    """Keys that give access to ``/v1``; if there are none, no key is needed."""
    allowed_hosts: tuple[str, ...] = ()
    """Names accepted in the ``Host`` header. By default any name is accepted, except where the
    server listens on a loopback address: there only the loopback's own names are, so that no web
    page can reach the server through a DNS name of its own."""
    allowed_origins: tuple[str, ...] = ()
    """Origins whose web pages may send requests (CORS)."""
    max_requests: int = 64
    """Maximum number of requests that run or wait; a further one receives 429 with Retry-After."""
    max_connections: int = 1024
    """Maximum number of open connections."""
    max_body_bytes: int = 32 * 1024**2
    """Maximum size of a request body, images in data URLs included."""
    body_timeout_s: float = 30.0
    """Time within which the body of a request must arrive."""
    max_head_bytes: int = 32 * 1024
    """Maximum size of a request line and headers."""
    header_timeout_s: float = 10.0
    """Time within which the request line and headers must arrive."""
    deadline_s: float = 300.0
    """Time within which a request must be complete, including the client's reading."""
    shutdown_timeout_s: float = 30.0
    """Time that running requests have to finish once the server stops; then they are cancelled."""
    max_answers: int = 8
    """Maximum number of completions of one request (``n``)."""
    default_max_tokens: int = 1024
    """Maximum number of tokens of a completion whose request states no limit."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name == "port":
                if not 0 <= value < 65536:
                    raise OptionError(f"port must be in 0..65535; it is {value}")
            elif isinstance(value, int | float) and value <= 0:
                raise OptionError(f"{setting.name} must be a positive number; it is {value!r}")
        if not self.model_name:
            raise OptionError("model_name must not be empty")
        if any(not key or not key.isascii() or not key.isprintable() for key in self.api_keys):
            raise OptionError("an API key must be printable ASCII and not empty")

    @property
    def host_names(self) -> frozenset[str]:
        """Names accepted in the ``Host`` header; empty if every name is."""
        if self.allowed_hosts:
            return frozenset(name.lower() for name in self.allowed_hosts)
        if is_loopback(self.host):
            return frozenset({"localhost", "127.0.0.1", "::1", self.host.lower()})
        return frozenset()


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on is reachable from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

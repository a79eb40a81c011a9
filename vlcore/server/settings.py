"""``ServerSettings``: what the server takes on, and for how long."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields

from vlcore.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a model is served.

    Raises:
        OptionError: a setting is out of range.
    """

    model_name: str
    """What requests call the model."""
    host: str = "127.0.0.1"
    port: int = 23333
    """0 for one that is free."""
    api_keys: tuple[str, ...] = ()
    """Any one of them opens ``/v1``; none leaves it open."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that the ``Host`` header may state; none given, any name, or only the loopback's own
    where the server listens there, so that no page of another site reaches it by its own name."""
    allowed_origins: tuple[str, ...] = ()
    """Pages of other sites that may ask (CORS)."""
    max_requests: int = 64
    """Requests that are answered or wait at a time; one more is told to come again."""
    max_connections: int = 1024
    max_body_bytes: int = 32 * 1024**2
    """Of one request, pictures in data URLs included."""
    body_timeout_s: float = 30.0
    """For the body of a request to arrive."""
    max_head_bytes: int = 32 * 1024
    """Of the line and the headers that a request begins with."""
    header_timeout_s: float = 10.0
    """For the head of a request to arrive."""
    deadline_s: float = 300.0
    """For a request as a whole, its reading by the client included."""
    shutdown_timeout_s: float = 30.0
    """For running requests to finish once the server is told to stop; then they are cancelled."""
    max_answers: int = 8
    """The most answers to one request (``n``)."""
    default_max_tokens: int = 1024
    """Of an answer whose request states no limit."""

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
        """Names that the ``Host`` header may state; empty for any."""
        if self.allowed_hosts:
            return frozenset(name.lower() for name in self.allowed_hosts)
        if is_loopback(self.host):
            return frozenset({"localhost", "127.0.0.1", "::1", self.host.lower()})
        return frozenset()


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

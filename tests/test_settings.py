from __future__ import annotations

from typing import Any

import pytest

from vlcore.errors import ConfigError
from vlcore.settings import integer, one_of


def test_an_integer_is_read() -> None:
    assert integer({"size": 3}, "size", "the file") == 3
    assert integer({"size": 3}, "size", "the file", default=4) == 3
    assert integer({}, "size", "the file", default=4) == 4


@pytest.mark.parametrize(
    "config", [{}, {"size": None}, {"size": "3"}, {"size": 3.0}, {"size": True}]
)
def test_another_type_is_reported(config: dict[str, Any]) -> None:
    message = f"^the file: size must be an integer; it is {config.get('size')!r}$"
    with pytest.raises(ConfigError, match=message):
        integer(config, "size", "the file")


def test_a_known_value_is_read() -> None:
    assert one_of({"mode": "a"}, "mode", ("a", "b"), "the file") == "a"
    assert one_of({}, "mode", ("a", "b"), "the file", default="b") == "b"
    assert one_of({"mode": None}, "mode", ("a", "b"), "the file", default="b") == "b"


@pytest.mark.parametrize("config", [{}, {"mode": "c"}, {"mode": ""}, {"mode": ["a"]}, {"mode": 1}])
def test_an_unknown_value_is_reported(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^mode in the file is .*; known: a, b$"):
        one_of(config, "mode", ("a", "b"), "the file")

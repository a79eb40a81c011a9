from __future__ import annotations

import pytest

from vlcore.errors import PluginContractError
from vlcore.language.features import FEATURES, check_features, check_row_width


def test_known_features_pass() -> None:
    assert check_features(set(FEATURES), "a") == FEATURES.keys()
    assert check_features(frozenset(), "a") == frozenset()


@pytest.mark.parametrize("requires", [{"mrope", "telepathy"}, "mrope", ["mrope"], None])
def test_unknown_features_are_refused(requires: object) -> None:
    with pytest.raises(PluginContractError, match=r"requires .* of a must be .*'mrope', positions"):
        check_features(requires, "a")


@pytest.mark.parametrize(
    ("row_width", "requires"),
    [(64, frozenset[str]()), (64, {"mrope"}), (128, {"deepstack"}), (256, {"deepstack", "mrope"})],
)
def test_a_row_width_that_follows_from_the_features_passes(
    row_width: int, requires: frozenset[str]
) -> None:
    check_row_width(row_width, 64, frozenset(requires), "a")


@pytest.mark.parametrize(
    ("row_width", "requires"),
    [(128, {"mrope"}), (32, frozenset[str]()), (64, {"deepstack"}), (100, {"deepstack"}), (0, {})],
)
def test_another_row_width_is_refused(row_width: int, requires: frozenset[str]) -> None:
    with pytest.raises(PluginContractError, match=rf"row_width .*of a must be .*it is {row_width}"):
        check_row_width(row_width, 64, frozenset(requires), "a")

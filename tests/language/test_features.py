from __future__ import annotations

import pytest

from vlcore.errors import PluginContractError
from vlcore.language.features import FEATURES, check_features


def test_known_features_pass() -> None:
    assert check_features(set(FEATURES), "a") == FEATURES.keys()
    assert check_features(frozenset(), "a") == frozenset()


@pytest.mark.parametrize("requires", [{"mrope", "telepathy"}, "mrope", ["mrope"], None])
def test_unknown_features_are_refused(requires: object) -> None:
    with pytest.raises(PluginContractError, match=r"requires .* of a must be .*'mrope', positions"):
        check_features(requires, "a")

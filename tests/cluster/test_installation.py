"""Ray is imported when it is used, and a missing one is an error that tells how to install it."""

from __future__ import annotations

import sys

import pytest

from vlcore.cluster.installation import import_ray
from vlcore.errors import EngineUnavailableError


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineUnavailableError, match=r"pip install 'vlcore\[ray\]'"):
        import_ray()

"""Marks the checks of the conformance kit that observe a plugin in a separate process as slow."""

from __future__ import annotations

import pytest

_ISOLATION = "vlcore.testing.checks.isolation"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them before the tests are selected."""
    for item in items:
        parameters = getattr(item, "callspec", None)
        check = parameters.params.get("check") if parameters is not None else None
        if getattr(getattr(check, "function", None), "__module__", None) == _ISOLATION:
            item.add_marker(pytest.mark.slow)

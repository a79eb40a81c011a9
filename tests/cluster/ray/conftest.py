"""One cluster for all tests: its Ray takes half a minute to start."""

from __future__ import annotations

import pytest
from cluster_fixture import cluster, started

__all__ = ["cluster", "started"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the test that ends the cluster last, in whatever order the others run."""
    items.sort(key=lambda item: item.get_closest_marker("ends_cluster") is not None)

"""The plugin keeps the contract, by the conformance kit."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import write_yi

from vlcore.testing import PluginConformance


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yi(tmp_path_factory.mktemp("yi"))


class TestYi(PluginConformance):
    plugin = "vl-plugin-yi"

"""The plugin keeps the contract, by the conformance kit."""

from __future__ import annotations

from pathlib import Path

import pytest
from qwen_checkpoints import write_qwen

from vlcore.testing import PluginConformance


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen(tmp_path_factory.mktemp("qwen"))


class TestQwen(PluginConformance):
    plugin = "vl-plugin-qwen"

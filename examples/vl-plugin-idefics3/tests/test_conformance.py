"""The plugin keeps the contract, by the conformance kit; both architectures are served alike."""

from __future__ import annotations

import pytest

from vlcore.testing import PluginConformance


@pytest.mark.parametrize("checkpoint", ["smolvlm"], indirect=True)
class TestSmolVlm(PluginConformance):
    plugin = "vl-plugin-idefics3"

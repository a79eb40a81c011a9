"""The plugin keeps the contract, by the conformance kit, on both architectures."""

from vlcore.testing import PluginConformance


class TestIdefics3(PluginConformance):
    plugin = "vl-plugin-idefics3"
    serves = ("SmolVLM-Instruct",)

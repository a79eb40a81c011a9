"""A model that only plugins of tests serve."""

from __future__ import annotations

from typing import Any

from distributions import plugin_source

from vlcore.plugins.registry import (
    PluginInfo,
    installed_plugins,
)

CONFIG: dict[str, Any] = {"architectures": ["MadeUpForTests"]}
ARCHITECTURES = ("MadeUpForTests",)
REFUSES = plugin_source(match='return "its gadget is unknown"')


def info_of(distribution: str) -> PluginInfo:
    """Return what is known about an installed plugin."""
    return next(info for info in installed_plugins() if info.distribution == distribution)

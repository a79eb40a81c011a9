"""The conformance kit: named checks that every plugin should pass.

Subclass :class:`PluginConformance` in the tests of a plugin, or call :func:`check_plugin`; at the
command line it is ``vlcore check``. Names are imported when they are first used:
:class:`PluginConformance` needs pytest (extra ``vlcore[testing]``), and nothing else does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlcore.testing.check import Check
    from vlcore.testing.checks import CHECKS
    from vlcore.testing.conformance import PluginConformance
    from vlcore.testing.failure import Failure
    from vlcore.testing.reference import record_reference
    from vlcore.testing.report import Outcome, Report, Result
    from vlcore.testing.runner import check_plugin

_HOMES = {
    "CHECKS": "checks",
    "Check": "check",
    "Failure": "failure",
    "Outcome": "report",
    "PluginConformance": "conformance",
    "Report": "report",
    "Result": "report",
    "check_plugin": "runner",
    "record_reference": "reference",
}

__all__ = [
    "CHECKS",
    "Check",
    "Failure",
    "Outcome",
    "PluginConformance",
    "Report",
    "Result",
    "check_plugin",
    "record_reference",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"vlcore.testing.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'vlcore.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

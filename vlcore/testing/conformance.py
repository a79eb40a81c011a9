"""The checks as pytest tests: a base class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

try:
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "vlcore.testing.PluginConformance needs pytest: pip install 'vlcore[testing]'. "
        "vlcore.testing.check_plugin and vlcore check need nothing more"
    ) from error

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.testing.check import Check, check_expected_failures
from vlcore.testing.checks import CHECKS
from vlcore.testing.known_models import known_models_of
from vlcore.testing.report import Outcome, Result, summary_of
from vlcore.testing.subject import Subject

_SUBJECT = pytest.StashKey[Subject]()
_SUMMARY = "vlcore-conformance"


class PluginConformance:
    """Base class of a plugin's conformance tests.

    A subclass needs a fixture ``checkpoint``, of any scope, in its module or class: the directory
    of a tiny checkpoint that the plugin serves. The attributes are the arguments of
    :func:`~vlcore.testing.check_plugin`.

    Raises:
        OptionError: an expected failure names no check or has no reason; raised when the class is
            defined.
    """

    plugin: ClassVar[str | None] = None
    excused: ClassVar[Mapping[str, str]] = {}
    reference: ClassVar[str | Path | None] = None
    serves: ClassVar[Sequence[str]] = ()
    tolerance: ClassVar[float | None] = None
    device: ClassVar[str] = "cpu"
    dtype: ClassVar[str | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_expected_failures(cls.excused, CHECKS)
        known_models_of(cls.plugin or "", cls.serves)

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
    def test_conformance(
        self,
        check: Check,
        checkpoint: str | Path | Checkpoint,
        request: pytest.FixtureRequest,
    ) -> None:
        """Run one check."""
        result = check.run(self._subject(checkpoint, request), self.excused.get(check.name))
        _summary(request.config).add(type(self).__name__, result)
        if result.outcome in (Outcome.FAILED, Outcome.NOT_RUN):
            pytest.fail(f"{result.name}: {result.about}\n{result.message}", pytrace=False)
        if result.outcome is Outcome.EXCUSED:
            pytest.xfail(result.reason)
        if result.outcome is Outcome.DOES_NOT_APPLY:
            pytest.skip(result.reason)

    def _subject(
        self, checkpoint: str | Path | Checkpoint, request: pytest.FixtureRequest
    ) -> Subject:
        """Load the stages once for all checks of the class."""
        node: pytest.Class = request.node.getparent(pytest.Class)
        if _SUBJECT not in node.stash:
            subject = Subject(
                self.plugin,
                checkpoint,
                reference=self.reference,
                serves=self.serves,
                tolerance=self.tolerance,
                device=self.device,
                dtype=self.dtype,
            )
            node.stash[_SUBJECT] = subject
            node.addfinalizer(subject.close)
        return node.stash[_SUBJECT]


class _Summary:
    """Summarizes at the end of a run how many checks ran, and which failed as expected and why."""

    def __init__(self) -> None:
        self._results: dict[str, list[Result]] = {}

    def add(self, name: str, result: Result) -> None:
        """Add a result."""
        self._results.setdefault(name, []).append(result)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Write the summary; pytest calls this."""
        terminalreporter.section("vlcore conformance")
        for name, results in self._results.items():
            for line in summary_of(results):
                terminalreporter.line(f"{name}: {line}")


def _summary(config: pytest.Config) -> _Summary:
    summary = config.pluginmanager.get_plugin(_SUMMARY)
    if summary is None:
        summary = _Summary()
        config.pluginmanager.register(summary, _SUMMARY)
    assert isinstance(summary, _Summary)  # noqa: S101  (for mypy: the name is private to this module)
    return summary

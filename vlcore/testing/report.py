"""The results of a run of the checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn


class Outcome(StrEnum):
    """The outcome of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"
    """The check needs a stage whose own check fails."""
    EXCUSED = "excused"
    """The check fails as expected: it was excused by name, with a reason."""
    DOES_NOT_APPLY = "does not apply"


_WITHOUT_A_RUN = {Outcome.NOT_RUN: "could not be run", Outcome.DOES_NOT_APPLY: "did not apply"}


@dataclass(frozen=True)
class Result:
    """The result of one check."""

    name: str
    about: str
    outcome: Outcome
    failure: Failure | None = None
    """What is wrong, if the check failed, expectedly or not."""
    reason: str = ""
    """Why the check is expected to fail, was not run or does not apply."""
    seconds: float = 0.0

    @property
    def message(self) -> str:
        """Explanation of the outcome; empty if the check passed."""
        lines = [self.reason] if self.reason else []
        return "\n".join([*lines, *([str(self.failure)] if self.failure else [])])


@dataclass(frozen=True)
class Report:
    """The results of a run, in the order of the checks."""

    plugin: str
    version: str
    model: str
    """The checkpoint; empty if only the package was checked."""
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed and every check could be run."""
        return not any(self.of(Outcome.FAILED, Outcome.NOT_RUN))

    def of(self, *outcomes: Outcome) -> tuple[Result, ...]:
        """The results with one of these outcomes."""
        return tuple(result for result in self.results if result.outcome in outcomes)

    def __getitem__(self, name: str) -> Result:
        """The result of one check.

        Raises:
            KeyError: the check was not part of the run.
        """
        return {result.name: result for result in self.results}[name]

    def __str__(self) -> str:
        title = f"{self.plugin} {self.version}"
        lines = [f"{title} with {self.model}" if self.model else title]
        for result in self.of(Outcome.FAILED, Outcome.NOT_RUN):
            message = result.message.replace("\n", "\n  ")
            lines += ["", f"{result.name} {result.outcome}: {result.about}", f"  {message}"]
        return "\n".join([*lines, "", *summary_of(self.results)])

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, whose field names are stable."""
        return {
            "plugin": self.plugin,
            "version": self.version,
            "model": self.model,
            "ok": self.ok,
            "counts": {str(outcome): len(self.of(outcome)) for outcome in Outcome},
            "checks": [
                {
                    "name": result.name,
                    "about": result.about,
                    "outcome": str(result.outcome),
                    "reason": result.reason,
                    "failure": None if result.failure is None else vars(result.failure).copy(),
                    "seconds": round(result.seconds, 3),
                }
                for result in self.results
            ],
        }


def summary_of(results: Iterable[Result]) -> list[str]:
    """Summarize in lines how many checks ran, and which failed as expected and why."""
    by_outcome: dict[Outcome, list[Result]] = {outcome: [] for outcome in Outcome}
    for result in results:
        by_outcome[result.outcome].append(result)
    ran = [outcome for outcome in Outcome if outcome not in _WITHOUT_A_RUN]
    counts = [f"{len(by_outcome[outcome])} {outcome}" for outcome in ran]
    first = f"{sum(len(by_outcome[outcome]) for outcome in ran)} checks ran: {', '.join(counts)}"
    for outcome, words in _WITHOUT_A_RUN.items():
        if found := by_outcome[outcome]:
            first += f"; {len(found)} {words}"
    lines = [first]
    for outcome in (Outcome.EXCUSED, Outcome.DOES_NOT_APPLY):
        lines += [f"{result.name} {outcome}: {result.reason}" for result in by_outcome[outcome]]
    return lines


@dataclass(frozen=True)
class Failure:
    """What is wrong: expected, actual, where, and what to do."""

    expected: str
    actual: str
    where: str
    advice: str
    """What to do next."""

    def __str__(self) -> str:
        return (
            f"expected: {self.expected}\n"
            f"actual:   {self.actual}\n"
            f"where:    {self.where}\n"
            f"do:       {self.advice}"
        )


class CheckFailedError(AssertionError):
    """The plugin fails the check."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class DoesNotApplyError(Exception):
    """There is nothing to check; the message explains why."""


class NotRunError(Exception):
    """A stage that the check needs cannot be loaded; the message names the check of that stage."""


def fail(*, expected: str, actual: str, where: str, advice: str) -> NoReturn:
    """Fail a check.

    Raises:
        CheckFailedError: always.
    """
    raise CheckFailedError(Failure(expected, actual, where, advice))

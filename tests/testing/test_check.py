"""One check: its result, and the result if it is expected to fail."""

from __future__ import annotations

from typing import Any

import pytest

from vlcore import OptionError
from vlcore.testing import CHECKS, Check, Outcome
from vlcore.testing.check import check, check_expected_failures
from vlcore.testing.report import DoesNotApplyError, NotRunError, fail

SUBJECT: Any = None
"""The checks below look at none."""


def passing(subject: object) -> None:
    pass


def failing(subject: object) -> None:
    fail(expected="a", actual="b", where="c", advice="d")


def not_applying(subject: object) -> None:
    raise DoesNotApplyError("there is nothing to see")


def not_runnable(subject: object) -> None:
    raise NotRunError("see other")


@pytest.mark.parametrize(
    ("function", "expected_failure", "outcome"),
    [
        (passing, None, Outcome.PASSED),
        (failing, None, Outcome.FAILED),
        (not_applying, None, Outcome.DOES_NOT_APPLY),
        (not_runnable, None, Outcome.NOT_RUN),
        (passing, "it is slow", Outcome.FAILED),
        (failing, "it is slow", Outcome.EXCUSED),
        (not_applying, "it is slow", Outcome.DOES_NOT_APPLY),
        (not_runnable, "it is slow", Outcome.EXCUSED),
    ],
)
def test_only_a_failure_can_be_expected(
    function: Any, expected_failure: str | None, outcome: Outcome
) -> None:
    assert Check("some", "does", function).run(SUBJECT, expected_failure).outcome is outcome


def test_a_failure_is_reported_in_four_sentences() -> None:
    result = Check("some", "does", failing).run(SUBJECT)
    assert result.message == "expected: a\nactual:   b\nwhere:    c\ndo:       d"


def test_an_expected_failure_is_reported_with_its_reason() -> None:
    result = Check("some", "does", failing).run(SUBJECT, "it is slow")
    assert result.reason == "it is slow"
    assert result.message.startswith("it is slow\nexpected: a")


def test_an_expected_failure_that_passes_must_be_removed() -> None:
    failure = Check("some", "does", passing).run(SUBJECT, "it is slow").failure
    assert failure is not None
    assert failure.expected == "a failure, because the check is excused: it is slow"
    assert failure.actual == "it passes"
    assert failure.advice == "remove it from the expected failures"


def test_any_other_exception_is_a_failure_with_its_location() -> None:
    class Package:
        module_names = ("test_check",)

    def raising(subject: object) -> None:
        raise KeyError("width")

    subject: Any = Package()
    failure = Check("some", "does", raising).run(subject).failure
    assert failure is not None
    assert failure.actual == "KeyError: 'width'"
    assert failure.where.endswith("in raising")
    assert "test_check.py:" in failure.where


def test_a_check_is_made_of_a_function() -> None:
    made = check("some", "does", needs_model=False)(passing)
    assert made == Check("some", "does", passing, needs_model=False)


def test_an_expected_failure_names_a_check() -> None:
    with pytest.raises(OptionError, match=r"no check named rows-shapes; .* rows-shape,"):
        check_expected_failures({"rows-shapes": "why not"}, CHECKS)


@pytest.mark.parametrize("reason", ["", " ", None])
def test_an_expected_failure_has_a_reason(reason: Any) -> None:
    with pytest.raises(OptionError, match="rows-shape is excused without a reason"):
        check_expected_failures({"rows-shape": reason}, CHECKS)

from __future__ import annotations

import json

import pytest

from vlcore.testing import Failure, Outcome, Report, Result
from vlcore.testing.report import summary_of

PASSED = Result("one", "does one", Outcome.PASSED, seconds=0.1)
FAILED = Result("two", "does two", Outcome.FAILED, Failure("a", "b", "c", "d"))
NOT_RUN = Result("three", "does three", Outcome.NOT_RUN, reason="see two")
EXCUSED = Result("four", "does four", Outcome.EXCUSED, Failure("a", "b", "c", "d"), "it is old")
NOT_APPLYING = Result("five", "does five", Outcome.DOES_NOT_APPLY, reason="no file")


def report(*results: Result) -> Report:
    return Report("vl-plugin-some", "1.0", "tiny", results)


@pytest.mark.parametrize(
    ("results", "ok"),
    [
        ((PASSED, EXCUSED, NOT_APPLYING), True),
        ((PASSED, FAILED), False),
        ((PASSED, NOT_RUN), False),
    ],
)
def test_a_report_is_fine_if_nothing_failed_and_all_was_run(
    results: tuple[Result, ...], ok: bool
) -> None:
    assert report(*results).ok is ok


def test_results_are_found_by_name_and_outcome() -> None:
    found = report(PASSED, FAILED, NOT_RUN)
    assert found["two"] is FAILED
    assert found.of(Outcome.FAILED, Outcome.NOT_RUN) == (FAILED, NOT_RUN)
    with pytest.raises(KeyError):
        found["six"]


def test_the_summary_counts_the_checks_and_lists_expected_failures_with_reasons() -> None:
    assert summary_of([PASSED, FAILED, NOT_RUN, EXCUSED, NOT_APPLYING]) == [
        "3 checks ran: 1 passed, 1 failed, 1 excused; 1 could not be run; 1 did not apply",
        "four excused: it is old",
        "five does not apply: no file",
    ]


def test_the_text_tells_what_is_wrong_and_ends_with_the_summary() -> None:
    assert str(report(PASSED, FAILED, NOT_RUN)).splitlines() == [
        "vl-plugin-some 1.0 with tiny",
        "",
        "two failed: does two",
        "  expected: a",
        "  actual:   b",
        "  where:    c",
        "  do:       d",
        "",
        "three not run: does three",
        "  see two",
        "",
        "2 checks ran: 1 passed, 1 failed, 0 excused; 1 could not be run",
    ]


def test_json_says_the_same() -> None:
    values = json.loads(json.dumps(report(PASSED, FAILED).to_json()))
    assert values["ok"] is False
    assert values["counts"] == {
        "passed": 1,
        "failed": 1,
        "not run": 0,
        "excused": 0,
        "does not apply": 0,
    }
    assert values["checks"][0]["seconds"] == 0.1
    assert values["checks"][1]["failure"] == {
        "expected": "a",
        "actual": "b",
        "where": "c",
        "advice": "d",
    }

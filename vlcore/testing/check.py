"""A named check, and how it is run."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlcore.errors import OptionError
from vlcore.testing.report import (
    CheckFailedError,
    DoesNotApplyError,
    Failure,
    NotRunError,
    Outcome,
    Result,
)
from vlcore.testing.subject import Subject


@dataclass(frozen=True)
class Check:
    """A requirement that every plugin must meet."""

    name: str
    about: str
    """The requirement, in one line."""
    function: Callable[[Subject], None]
    needs_model: bool = True
    """Whether the check needs a checkpoint in addition to the package."""

    def run(self, subject: Subject, expected_failure: str | None = None) -> Result:
        """Run the check. Exceptions of the plugin become failures.

        Args:
            subject: the plugin under test.
            expected_failure: why the check is expected to fail; passing is then a failure.
        """
        started = time.perf_counter()
        result = self._outcome(subject)
        if expected_failure is not None:
            result = _excused(result, expected_failure)
        return replace(result, seconds=time.perf_counter() - started)

    def _outcome(self, subject: Subject) -> Result:
        passed = Result(self.name, self.about, Outcome.PASSED)
        try:
            self.function(subject)
        except CheckFailedError as error:
            return replace(passed, outcome=Outcome.FAILED, failure=error.failure)
        except DoesNotApplyError as error:
            return replace(passed, outcome=Outcome.DOES_NOT_APPLY, reason=str(error))
        except NotRunError as error:
            return replace(passed, outcome=Outcome.NOT_RUN, reason=str(error))
        except (Exception, SystemExit) as error:
            failure = _raised(error, subject)
            return replace(passed, outcome=Outcome.FAILED, failure=failure)
        return passed


def check(
    name: str, about: str, *, needs_model: bool = True
) -> Callable[[Callable[[Subject], None]], Check]:
    """Turn a function that raises if a plugin fails into a check."""
    return lambda function: Check(name, about, function, needs_model)


def check_expected_failures(excused: Mapping[str, str], checks: Sequence[Check]) -> None:
    """Check that every expected failure names a check and has a reason.

    Raises:
        OptionError: an expected failure does not.
    """
    known = [check.name for check in checks]
    if unknown := sorted(set(excused) - set(known)):
        raise OptionError(
            f"there is no check named {', '.join(unknown)}; the checks are {', '.join(known)}"
        )
    for name, reason in excused.items():
        if not isinstance(reason, str) or not reason.strip():
            raise OptionError(f"{name} is excused without a reason: state why it may fail")


def _excused(result: Result, reason: str) -> Result:
    if result.outcome in (Outcome.FAILED, Outcome.NOT_RUN):
        return replace(result, outcome=Outcome.EXCUSED, reason=reason)
    if result.outcome is Outcome.PASSED:
        failure = Failure(
            expected=f"a failure, because the check is excused: {reason}",
            actual="it passes",
            where=f"the expected failure of {result.name}",
            advice="remove it from the expected failures",
        )
        return replace(result, outcome=Outcome.FAILED, failure=failure)
    return result


def _raised(error: BaseException, subject: Subject) -> Failure:
    """Describe an unexpected exception of a plugin, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    cause = error.__cause__
    if cause is not None:  # the error of a hook, wrapped by the core
        frames = traceback.extract_tb(cause.__traceback__) or frames
    own = [frame for frame in frames if _belongs_to(frame.filename, subject)]
    where = "outside the plugin"
    if frames:
        last = (own or frames)[-1]
        where = f"{last.filename}:{last.lineno}, in {last.name}"
    return Failure(
        expected="no error",
        actual=f"{type(error).__name__}: {error}",
        where=where,
        advice="fix the error, or raise an error of vlcore that explains it",
    )


def _belongs_to(filename: str, subject: Subject) -> bool:
    try:
        names = {module.split(".")[0] for module in subject.module_names}
    except NotRunError:
        return False
    path = Path(filename)
    return bool(names & {*path.parts, path.stem})

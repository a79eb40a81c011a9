"""What a check says when it does not pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True)
class Failure:
    """What is wrong, in four sentences."""

    expected: str
    came: str
    where: str
    advice: str
    """What to do next."""

    def __str__(self) -> str:
        return (
            f"expected: {self.expected}\n"
            f"came:     {self.came}\n"
            f"where:    {self.where}\n"
            f"do:       {self.advice}"
        )


class CheckFailedError(AssertionError):
    """The plugin does not keep what the check asks for."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class DoesNotApplyError(Exception):
    """There is nothing to check; the message says why."""


class NotRunError(Exception):
    """What the check needs cannot be had; the message names the check that says why."""


def fail(*, expected: str, came: str, where: str, advice: str) -> NoReturn:
    """Say that the plugin fails a check.

    Raises:
        CheckFailedError: always.
    """
    raise CheckFailedError(Failure(expected, came, where, advice))

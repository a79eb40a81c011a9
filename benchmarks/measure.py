"""What every benchmark needs: interleaved rounds, ratios within a round, and Markdown.

A benchmark prints its result to standard output: a ``## Title``, a paragraph that states what is
compared and how, and a table. Its progress goes to standard error, and ``--quick`` makes it end in
seconds.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

Contender = TypeVar("Contender", bound=Hashable)
Measurement = TypeVar("Measurement")


def interleave(
    rounds: int, contenders: Mapping[Contender, Callable[[], Measurement]]
) -> dict[Contender, list[Measurement]]:
    """Measure each contender once a round, so that a slow minute of the machine affects them all.

    Every other round is in reverse order, so that none gains by its position.
    """
    measured: dict[Contender, list[Measurement]] = {name: [] for name in contenders}
    for number in range(rounds):
        order = list(contenders)
        for name in reversed(order) if number % 2 else order:
            progress(f"round {number + 1} of {rounds}: {name}")
            measured[name].append(contenders[name]())
    return measured


def ratios(values: Sequence[float], bases: Sequence[float]) -> list[float]:
    """Divide each value by that of the same round."""
    return [value / base for value, base in zip(values, bases, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write values as ``median (min..max)``."""
    low, median, high = min(values), statistics.median(values), max(values)
    return f"{median:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def quartiles(values: Sequence[float]) -> str:
    """Write values as ``median (lower quartile..upper quartile)``."""
    if len(values) < 4:
        return spread(values)
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:.2f} ({low:.2f}..{high:.2f})"


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a table whose first column is text and whose others are numbers."""
    rules = [":--", *["--:"] * (len(headers) - 1)]
    return "\n".join(
        f"| {' | '.join(str(cell) for cell in cells)} |" for cells in [headers, rules, *rows]
    )


def progress(line: str) -> None:
    """Print progress to standard error."""
    print(line, file=sys.stderr, flush=True)

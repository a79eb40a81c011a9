"""Progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    total: int, *, description: str, unit: str, shown: bool
) -> Iterator[Callable[[], object]]:
    """Show a progress bar, and yield the function that advances it by one step.

    Args:
        total: number of steps.
        description: text before the bar.
        unit: unit of the steps.
        shown: whether there is a bar at all.
    """
    if not shown:
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=description, unit=unit) as bar:
        yield bar.update

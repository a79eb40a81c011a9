"""Progress bars, for those who want them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    total: int, *, description: str, unit: str, shown: bool
) -> Iterator[Callable[[], object]]:
    """Give a function to call for each step; nothing is drawn, and no thread made, unless shown."""
    if not shown:
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=description, unit=unit) as bar:
        yield bar.update

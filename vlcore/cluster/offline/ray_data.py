"""``ray_data_settings``: Ray Data continues after a lost group, and writes no output of its own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_SILENCED_LOGGERS = (
    "ray.data.exceptions",
    "ray.data._internal.progress",
    "ray.data._internal.execution.streaming_executor_state",
    "ray.data._internal.execution.operators.actor_pool_map_operator",
    "ray.data._internal.execution.operators.map_operator",
)


class DeathLog(logging.Filter):
    """Keeps the reason why a process died, which Ray Data logs, out of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.last: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Note the error of a record; no record is written."""
        if record.exc_info and record.exc_info[1]:
            self.last = record.exc_info[1]
        return False


@contextmanager
def ray_data_settings(deaths: DeathLog) -> Iterator[None]:
    """Let Ray Data lose the groups whose process dies, and leave the output to this program."""
    from ray.data import DataContext

    context = DataContext.get_current()
    changed = {
        "max_errored_blocks": -1,
        "enable_progress_bars": False,
        "print_on_execution_start": False,
    }
    before = {name: getattr(context, name) for name in changed}
    loggers = [logging.getLogger(name) for name in _SILENCED_LOGGERS]
    levels = [(one, one.level) for one in (logging.getLogger("ray.data"), *loggers)]
    for one, _ in levels:
        one.setLevel(logging.WARNING)
    for one in loggers:
        one.addFilter(deaths)
    for name, value in changed.items():
        setattr(context, name, value)
    try:
        with warnings.catch_warnings():
            # Nothing else bounds the retries of a task, which are endless by default.
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            yield
    finally:
        for one in loggers:
            one.removeFilter(deaths)
        for one, level in levels:
            one.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)

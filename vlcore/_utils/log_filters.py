"""Keeps torchao quiet on import, which transformers imports wherever it is installed."""

from __future__ import annotations

import logging

_NOTHING_TO_TELL = {
    # Its kernels for CUDA, which a CPU build of torch cannot load and nothing here uses.
    "torchao": ("Failed to load ", "Skipping import of cpp extensions"),
    # How it registers its enums.
    "torch.utils._pytree": ("%s is an Enum subclass and is now natively supported",),
}


def filter_torchao_logs() -> None:
    """Drop what it logs that no user of vlcore can act upon; all else is logged as ever."""
    for name, beginnings in _NOTHING_TO_TELL.items():
        logging.getLogger(name).addFilter(_Without(beginnings))


class _Without(logging.Filter):
    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self._beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self._beginnings)

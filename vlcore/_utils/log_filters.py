"""Filters for log messages of other libraries that users of vlcore cannot act on."""

from __future__ import annotations

import logging

_DROPPED_PREFIXES = {
    # CUDA kernels, which a CPU build of torch cannot load and vlcore does not use.
    "torchao": ("Failed to load ", "Skipping import of cpp extensions"),
    # The way in which torchao registers its enums.
    "torch.utils._pytree": ("%s is an Enum subclass and is now natively supported",),
}


def filter_torchao_logs() -> None:
    """Drop the messages that torchao logs when transformers imports it."""
    for name, prefixes in _DROPPED_PREFIXES.items():
        logging.getLogger(name).addFilter(_PrefixFilter(prefixes))


class _PrefixFilter(logging.Filter):
    def __init__(self, prefixes: tuple[str, ...]) -> None:
        super().__init__()
        self._prefixes = prefixes

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self._prefixes)

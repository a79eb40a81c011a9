"""Formatting of sizes in bytes."""

from __future__ import annotations


def readable_size(num_bytes: int) -> str:
    """Format a number of bytes with a binary unit, such as ``"1.5 GiB"``."""
    size = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"

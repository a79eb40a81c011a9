"""Numbers of bytes as people read them."""

from __future__ import annotations


def readable_size(num_bytes: int) -> str:
    """Write a number of bytes for people."""
    size = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"

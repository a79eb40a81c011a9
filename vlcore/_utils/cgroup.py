"""Memory and CPU limits of the control groups (cgroups) that this process is in.

Containers are limited by cgroups, and ``/proc/meminfo`` and the CPU affinity do not show these
limits. Versions 1 and 2 are supported, and so are nested groups, whose limits all apply.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html,
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html and
https://docs.kernel.org/scheduler/sched-bwc.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
_UNLIMITED_BYTES = 2**60
"""Version 1 states the largest multiple of the page size where there is no limit."""
_DEFAULT_MOUNTS = {
    "cgroup2": "sys/fs/cgroup",
    "memory": "sys/fs/cgroup/memory",
    "cpu": "sys/fs/cgroup/cpu",
}
_OCTAL_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class _Files:
    """The names of a memory controller's files and of the reclaimable counters."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: tuple[str, ...]


_V1 = _Files(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)
_V2 = _Files(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))


def memory_limit(root: Path = _ROOT) -> int | None:
    """Return the lowest memory limit of the process's cgroups in bytes, or ``None`` without one.

    Args:
        root: directory of ``proc`` and ``sys``.
    """
    limits = (_limit(group, files) for group, files in _memory_groups(root))
    return min((limit for limit in limits if limit is not None), default=None)


def memory_headroom(root: Path = _ROOT) -> int | None:
    """Return how many bytes the process's cgroups can still allocate, or ``None`` without a limit.

    File pages in the page cache count as free, because the kernel reclaims them.

    Args:
        root: directory of ``proc`` and ``sys``.
    """
    headrooms = []
    for group, files in _memory_groups(root):
        limit, usage = _limit(group, files), _read_int(group / files.usage)
        if limit is not None and usage is not None:
            headrooms.append(max(0, limit - max(0, usage - _reclaimable(group, files))))
    return min(headrooms, default=None)


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Return how many CPUs the process's cgroups may use, such as 1.5, or ``None`` without a limit.

    Args:
        root: directory of ``proc`` and ``sys``.
    """
    quotas = [_cpu_max(group) for group in _groups("cgroup2", root)]
    quotas += [
        (_read_int(group / "cpu.cfs_quota_us"), _read_int(group / "cpu.cfs_period_us"))
        for group in _groups("cpu", root)
    ]
    return min(
        (quota / period for quota, period in quotas if quota and period and min(quota, period) > 0),
        default=None,
    )


def _memory_groups(root: Path) -> Iterator[tuple[Path, _Files]]:
    for group in _groups("cgroup2", root):
        yield group, _V2
    for group in _groups("memory", root):
        yield group, _V1


def _groups(controller: str, root: Path) -> list[Path]:
    """Return the directories of the process's cgroup and its ancestors, as far as they are mounted.

    Args:
        controller: a controller of version 1, or ``"cgroup2"``.
        root: directory of ``proc`` and ``sys``.
    """
    name = _group_name(controller, root)
    if name is None:
        return []
    mount_root, mount = _mount(controller, root)
    # A container that shares the host's cgroup namespace sees the host's name of its own group,
    # of which only a part is mounted.
    try:
        relative = PurePosixPath(name).relative_to(mount_root)
    except ValueError:
        relative = PurePosixPath()
    if ".." in relative.parts:
        relative = PurePosixPath()
    group = mount / relative
    return [group, *group.parents[: len(relative.parts)]]


def _group_name(controller: str, root: Path) -> str | None:
    """Return the path of the process's cgroup in the hierarchy of a controller."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        is_v2 = number == "0" and not controllers
        if is_v2 if controller == "cgroup2" else controller in controllers.split(","):
            return name
    return None


def _mount(controller: str, root: Path) -> tuple[str, Path]:
    """Return which cgroup of a hierarchy is mounted, and the mount point."""
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        mount, _, filesystem = line.partition(" - ")
        fields, options = mount.split(), filesystem.split()
        if len(fields) < 5 or len(options) < 3:
            continue
        is_v1 = options[0] == "cgroup" and controller in options[2].split(",")
        if is_v1 or options[0] == controller == "cgroup2":
            mount_root, mount_point = map(_unescape, fields[3:5])
            return mount_root, root / mount_point.lstrip("/")
    return "/", root / _DEFAULT_MOUNTS[controller]


def _limit(group: Path, files: _Files) -> int | None:
    limits = (_read_int(group / name) for name in files.limits)
    stated = [limit for limit in limits if limit is not None and 0 <= limit < _UNLIMITED_BYTES]
    return min(stated, default=None)


def _cpu_max(group: Path) -> tuple[int | None, int | None]:
    quota, _, period = (_read(group / "cpu.max") or "").partition(" ")
    return _as_int(quota), _as_int(period)


def _reclaimable(group: Path, files: _Files) -> int:
    counters = dict(
        line.split(maxsplit=1)
        for line in (_read(group / "memory.stat") or "").splitlines()
        if " " in line.strip()
    )
    return sum(_as_int(counters.get(name, "0")) or 0 for name in files.reclaimable)


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError:  # no such controller, no access, or not Linux
        return None


def _read_int(path: Path) -> int | None:
    return _as_int(_read(path) or "")


def _as_int(text: str) -> int | None:
    """Convert a number; ``None`` for other texts, such as ``"max"``."""
    try:
        return int(text)
    except ValueError:
        return None


def _unescape(path: str) -> str:
    return _OCTAL_ESCAPE.sub(lambda match: chr(int(match[1], 8)), path)

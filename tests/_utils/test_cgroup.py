from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from vlcore._utils.cgroup import cpu_quota, memory_headroom, memory_limit

GIB = 1024**3
V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
UNLIMITED_V1 = "9223372036854771712\n"


def write_tree(root: Path, files: Mapping[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content), "utf-8")
    return root


def write_v2(root: Path, group: str, files: Mapping[str, object]) -> Path:
    tree = {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    facts = {"proc/self/cgroup": f"0::{group}\n", "proc/self/mountinfo": V2_MOUNT}
    return write_tree(root, facts | tree)


def write_v1(root: Path, group: str, mount_root: str, files: Mapping[str, object]) -> Path:
    tree = {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    facts = {
        "proc/self/cgroup": f"9:name=systemd:{group}\n4:memory:{group}\n1:cpu,cpuacct:{group}\n",
        "proc/self/mountinfo": (
            "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
            f"35 31 0:32 {mount_root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            f"32 31 0:29 {mount_root} /sys/fs/cgroup/cpu,cpuacct rw"
            " - cgroup cgroup rw,cpu,cpuacct\n"
        ),
    }
    return write_tree(root, facts | tree)


def test_without_cgroups_there_is_no_limit(tmp_path: Path) -> None:
    assert (memory_limit(tmp_path), memory_headroom(tmp_path), cpu_quota(tmp_path)) == (None,) * 3


# -- version 2


def test_the_limits_of_a_container_apply(tmp_path: Path) -> None:
    root = write_v2(
        tmp_path,
        "/",
        {
            "memory.max": f"{4 * GIB}\n",
            "memory.current": f"{3 * GIB}\n",
            "memory.stat": f"anon {2 * GIB}\ninactive_file {GIB // 2}\nactive_file {GIB // 4}\n",
            "cpu.max": "150000 100000\n",
        },
    )
    assert memory_limit(root) == 4 * GIB
    assert memory_headroom(root) == GIB + GIB // 2 + GIB // 4
    assert cpu_quota(root) == 1.5


def test_groups_without_limits_have_none(tmp_path: Path) -> None:
    files = {"memory.max": "max\n", "memory.current": "5\n", "cpu.max": "max 100000\n"}
    root = write_v2(tmp_path, "/a", {f"a/{name}": content for name, content in files.items()})
    assert (memory_limit(root), memory_headroom(root), cpu_quota(root)) == (None,) * 3


@pytest.mark.parametrize("limited", ["pod", "pod/container", "pod/container/worker"])
def test_the_limits_of_all_ancestors_apply(tmp_path: Path, limited: str) -> None:
    files: dict[str, object] = {}
    for group in ("pod", "pod/container", "pod/container/worker"):
        is_limited = group == limited
        files |= {
            f"{group}/memory.max": 2 * GIB if is_limited else 8 * GIB,
            f"{group}/memory.current": GIB,
            f"{group}/cpu.max": "50000 100000" if is_limited else "max 100000",
        }
    root = write_v2(tmp_path, "/pod/container/worker", files)
    assert (memory_limit(root), memory_headroom(root), cpu_quota(root)) == (2 * GIB, GIB, 0.5)


def test_a_fuller_ancestor_leaves_less_than_a_lower_limit(tmp_path: Path) -> None:
    files = {
        "a/memory.max": 8 * GIB,
        "a/memory.current": 7.5 * GIB // 1,
        "a/b/memory.max": 4 * GIB,
        "a/b/memory.current": GIB,
    }
    files = {name: int(value) for name, value in files.items()}
    root = write_v2(tmp_path, "/a/b", files)
    assert (memory_limit(root), memory_headroom(root)) == (4 * GIB, GIB // 2)


def test_limits_of_other_groups_do_not_apply(tmp_path: Path) -> None:
    files = {"a/memory.max": 1, "b/memory.max": 2 * GIB, "b/memory.current": 0}
    assert memory_limit(write_v2(tmp_path, "/b", files)) == 2 * GIB


def test_memory_high_is_a_limit(tmp_path: Path) -> None:
    files = {"memory.max": "max", "memory.high": GIB, "memory.current": 0}
    assert memory_limit(write_v2(tmp_path, "/", files)) == GIB


def test_a_full_group_has_no_headroom(tmp_path: Path) -> None:
    files = {"memory.max": GIB, "memory.current": GIB + 4096}
    assert memory_headroom(write_v2(tmp_path, "/", files)) == 0


# -- version 1


def test_the_limits_of_version_1_apply(tmp_path: Path) -> None:
    root = write_v1(
        tmp_path,
        "/docker/0123",
        "/docker/0123",
        {
            "memory/memory.limit_in_bytes": 3 * GIB,
            "memory/memory.usage_in_bytes": 2 * GIB,
            "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n",
            "cpu,cpuacct/cpu.cfs_quota_us": 250_000,
            "cpu,cpuacct/cpu.cfs_period_us": 100_000,
        },
    )
    assert (memory_limit(root), memory_headroom(root), cpu_quota(root)) == (3 * GIB, 2 * GIB, 2.5)


def test_nested_groups_of_version_1_apply(tmp_path: Path) -> None:
    root = write_v1(
        tmp_path,
        "/jobs/7",
        "/",
        {
            "memory/memory.limit_in_bytes": UNLIMITED_V1,
            "memory/jobs/memory.limit_in_bytes": 2 * GIB,
            "memory/jobs/memory.usage_in_bytes": GIB,
            "memory/jobs/7/memory.limit_in_bytes": UNLIMITED_V1,
            "memory/jobs/7/memory.usage_in_bytes": GIB // 2,
            "cpu,cpuacct/jobs/cpu.cfs_quota_us": 100_000,
            "cpu,cpuacct/jobs/cpu.cfs_period_us": 100_000,
            "cpu,cpuacct/jobs/7/cpu.cfs_quota_us": -1,
            "cpu,cpuacct/jobs/7/cpu.cfs_period_us": 100_000,
        },
    )
    assert (memory_limit(root), memory_headroom(root), cpu_quota(root)) == (2 * GIB, GIB, 1.0)


def test_version_1_states_a_huge_number_for_no_limit(tmp_path: Path) -> None:
    root = write_v1(
        tmp_path,
        "/",
        "/",
        {
            "memory/memory.limit_in_bytes": UNLIMITED_V1,
            "memory/memory.usage_in_bytes": GIB,
            "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert (memory_limit(root), memory_headroom(root), cpu_quota(root)) == (None,) * 3


def test_in_a_hybrid_hierarchy_both_versions_apply(tmp_path: Path) -> None:
    root = write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/a\n0::/a\n",
            "proc/self/mountinfo": (
                "42 31 0:39 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
                "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            ),
            "sys/fs/cgroup/unified/a/cpu.max": "300000 100000",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": GIB,
        },
    )
    assert (memory_limit(root), cpu_quota(root)) == (GIB, 3.0)


# -- unusual trees


def test_a_group_outside_of_the_namespace_uses_what_is_mounted(tmp_path: Path) -> None:
    root = write_v2(tmp_path, "/../../other", {"memory.max": GIB})
    assert memory_limit(root) == GIB


def test_without_mountinfo_the_usual_mount_points_are_read(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": GIB})
    assert memory_limit(root) == GIB


def test_mount_points_may_contain_escaped_characters(tmp_path: Path) -> None:
    root = write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": "31 23 0:28 / /sys/my\\040groups rw - cgroup2 cgroup2 rw\n",
            "sys/my groups/memory.max": GIB,
        },
    )
    assert memory_limit(root) == GIB


@pytest.mark.parametrize("content", ["", "garbage", "12 potatoes", "-5", "\x00\xff", "1e9"])
def test_damaged_files_mean_no_limit(tmp_path: Path, content: str) -> None:
    names = ("memory.max", "memory.high", "memory.current", "memory.stat", "cpu.max")
    root = write_v2(tmp_path, "/", dict.fromkeys(names, content))
    assert (memory_limit(root), memory_headroom(root), cpu_quota(root)) == (None,) * 3
    for name in ("cgroup", "mountinfo"):
        write_tree(root, {f"proc/self/{name}": content})
        assert memory_limit(root) is None

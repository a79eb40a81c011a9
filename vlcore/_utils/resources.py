"""The memory and the CPUs that this process can use, within the limits of its container."""

from __future__ import annotations

import logging
import math
import os

import psutil

from vlcore._utils.cgroup import cpu_quota, memory_headroom

logger = logging.getLogger(__name__)


def available_memory() -> int:
    """Return how much memory can be allocated without swapping, in bytes.

    This is ``psutil.virtual_memory().available``, or less if a cgroup limits the process.
    """
    available = int(psutil.virtual_memory().available)
    headroom = memory_headroom()
    return available if headroom is None else min(available, headroom)


def num_cpus() -> int:
    """Return the number of CPUs that this process can use, which is at least 1.

    This is ``os.process_cpu_count()`` of Python 3.13, which considers the CPU affinity, or less if
    a cgroup limits the CPU time. A fraction of a CPU counts as one.
    """
    quota = cpu_quota()
    count = _num_process_cpus()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def limit_torch_threads() -> None:
    """Reduce the number of torch's threads if a cgroup allows fewer CPUs.

    torch starts a thread for each CPU of the affinity. With more threads than CPU time, the kernel
    pauses all of them for the rest of each scheduling period.
    """
    if cpu_quota() is None:
        return
    import torch

    count = num_cpus()
    if count < torch.get_num_threads():
        logger.info("torch computes with %d thread(s), the CPU limit of the container", count)
        torch.set_num_threads(count)


def _num_process_cpus() -> int:
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

from __future__ import annotations

import os
from types import SimpleNamespace

import psutil
import pytest
import torch

from vlcore._utils import resources
from vlcore._utils.device import free_bytes
from vlcore._utils.resources import available_memory, limit_torch_threads, num_cpus


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with 1000 bytes of available memory and an affinity of 8 CPUs."""
    memory = SimpleNamespace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 8, raising=False)
    monkeypatch.setattr(resources, "memory_headroom", lambda: None)
    monkeypatch.setattr(resources, "cpu_quota", lambda: None)
    return monkeypatch


@pytest.mark.parametrize(("headroom", "expected"), [(None, 1000), (300, 300), (4000, 1000), (0, 0)])
def test_the_available_memory_is_limited_by_the_container(
    machine: pytest.MonkeyPatch, headroom: int | None, expected: int
) -> None:
    machine.setattr(resources, "memory_headroom", lambda: headroom)
    assert available_memory() == expected
    assert free_bytes(torch.device("cpu")) == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, 8), (0.1, 1), (1.0, 1), (1.5, 2), (4, 4), (99, 8)]
)
def test_the_cpus_are_limited_by_the_container(
    machine: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    machine.setattr(resources, "cpu_quota", lambda: quota)
    assert num_cpus() == expected


def test_before_python_3_13_the_affinity_counts(machine: pytest.MonkeyPatch) -> None:
    machine.delattr(os, "process_cpu_count")
    machine.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    assert num_cpus() == 3
    machine.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    machine.setattr(os, "cpu_count", lambda: 6)
    assert num_cpus() == 6
    machine.setattr(os, "cpu_count", lambda: None)
    assert num_cpus() == 1


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (8, 4), (2.5, 3), (0.5, 1)])
def test_torch_uses_no_more_threads_than_the_container_has_cpus(
    machine: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    threads = [4]
    machine.setattr(torch, "get_num_threads", lambda: threads[-1])
    machine.setattr(torch, "set_num_threads", threads.append)
    machine.setattr(resources, "cpu_quota", lambda: quota)
    limit_torch_threads()
    assert threads[-1] == expected

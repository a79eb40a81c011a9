from __future__ import annotations

import threading

import torch
from torch import nn

from vlcore.weights import empty_weights


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("frequencies", torch.ones(2), persistent=False)


def test_parameters_take_no_memory_and_buffers_are_computed() -> None:
    with empty_weights():
        module = Rotary()
    assert module.linear.weight.is_meta
    assert torch.equal(module.get_buffer("frequencies"), torch.ones(2))
    assert not nn.Linear(2, 2).weight.is_meta


def test_threads_that_build_at_once_leave_torch_as_it_was() -> None:
    barrier = threading.Barrier(4)

    def build() -> None:
        barrier.wait()
        for _ in range(25):
            with empty_weights():
                assert Rotary().linear.weight.is_meta

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not nn.Linear(2, 2).weight.is_meta

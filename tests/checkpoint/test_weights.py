from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vlcore.checkpoint.weights import empty_weights, open_weights, read_header

THREAD_IO = Path("/proc/thread-self/io")


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


def test_names_are_sorted_as_the_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    # The format puts wider dtypes first.
    save_file({"a": torch.zeros(1, dtype=torch.float16), "b": torch.zeros(1)}, path)
    with open_weights(path) as read:
        assert read.names == ["b", "a"]
        assert read.in_file_order(["a", "absent", "b"]) == ["absent", "b", "a"]


def test_a_tensor_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(4096.0)}, path)
    with open_weights(path) as read:
        tensor = read("a")
    with path.open("r+b") as file:  # in place: a mapped tensor would follow
        file.write(bytes(path.stat().st_size))
    assert torch.equal(tensor, torch.arange(4096.0))


def test_a_header_is_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    assert read_header(path).strip().startswith(b'{"a":')
    assert len(read_header(path)) == path.stat().st_size - 8 - 4
    path.write_bytes((2**63).to_bytes(8, "little") + b"{")  # a wrong length
    assert read_header(path) == b"{"


@pytest.mark.skipif(not THREAD_IO.exists(), reason="Linux alone counts what a thread reads")
def test_no_more_is_read_than_the_header_and_the_tensor(tmp_path: Path) -> None:
    def num_bytes_read() -> int:
        return int(THREAD_IO.read_text(encoding="utf-8").split()[1])

    path = tmp_path / "model.safetensors"
    wanted = torch.ones(1000)
    save_file({"a": torch.zeros(10**6), "b": wanted, "c": torch.zeros(10**6)}, path)
    counting = num_bytes_read()
    counting = num_bytes_read() - counting
    before = num_bytes_read()
    with open_weights(path) as read:
        tensor = read("b")
    taken = num_bytes_read() - before - counting
    assert torch.equal(tensor, wanted)
    assert wanted.nbytes <= taken <= wanted.nbytes + 2 * (8 + len(read_header(path)) + 64)

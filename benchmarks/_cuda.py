"""The device of the GPU benchmarks, and what stands in for it in a dry run on a CPU.

A dry run calls the same code with tiny sizes on whatever device there is, so that a mistake shows
before a GPU is at hand. Its figures mean nothing, and its output states that.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from importlib.metadata import version

import torch

DRY_RUN = "a dry run, not measured"


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Make the command line of a GPU benchmark."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--quick", action="store_true", help="a tiny model, one round")
    made.add_argument(
        "--dry-run", action="store_true", help="a tiny model, one round, and on a CPU if need be"
    )
    return made


def device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def device_name() -> str:
    """The name of the device and the versions of what ran on it."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{name}, torch {torch.__version__}, transformers {version('transformers')}"


def synchronize() -> None:
    """Wait until the device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free_memory() -> None:
    """Give the memory of deleted tensors back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def record(work: Callable[[], object]) -> Callable[[], object]:
    """Record work as a CUDA graph and return what replays it; on a CPU, the work itself."""
    if not torch.cuda.is_available():
        return work
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay

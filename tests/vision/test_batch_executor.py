from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from vlcore.errors import PluginContractError
from vlcore.vision.batch_executor import BatchExecutor, Outcome, is_out_of_memory
from vlcore.vision.device_runner import DeviceRunner
from vlcore.vision.model import ImageInputs, ImageRows, VisionModel
from vlcore.vision.stats import Meter

POISON = 99


class Numbers(VisionModel):
    """Encodes each number as one embedding; raises the error that ``fault`` returns for a batch."""

    hidden_size = 2

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def fault(self, numbers: list[int]) -> Exception | None:
        return RuntimeError("poisoned") if POISON in numbers else None

    def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
        self.batches.append(list(inputs))
        if error := self.fault(list(inputs)):
            raise error
        return [torch.full((1, 2), float(number)) for number in inputs]


class Small(Numbers):
    """Runs out of memory for larger batches, and for an image numbered 1000 or more."""

    def __init__(self, size: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.size = size
        self.error = error

    def fault(self, numbers: list[int]) -> Exception | None:
        too_much = len(numbers) > self.size or max(numbers) >= 1000
        return self.error("CUDA out of memory") if too_much else None


def executor_for(model: VisionModel, max_tiles: int = 64) -> BatchExecutor:
    return BatchExecutor(DeviceRunner(model), max_tiles, Meter())


def values_of(outcomes: Sequence[Outcome]) -> list[float | type[Exception]]:
    return [float(o.rows[0, 0]) if isinstance(o, ImageRows) else type(o) for o in outcomes]


@pytest.mark.parametrize("position", [0, 13, 31])
def test_a_failing_image_is_found_in_few_forward_passes(position: int) -> None:
    model = Numbers()
    numbers = [number if number != position else POISON for number in range(32)]
    outcomes = values_of(executor_for(model)(numbers))
    assert outcomes == [number if number != POISON else RuntimeError for number in numbers]
    assert len(model.batches) == 11  # all, then two halves of each of 16, 8, 4, 2 and 1 more


def test_only_the_failing_images_fail() -> None:
    outcomes = values_of(executor_for(Numbers())([1, POISON, 2, POISON]))
    assert outcomes == [1, RuntimeError, 2, RuntimeError]


def test_an_occasional_failure_of_a_batch_fails_no_image() -> None:
    class EveryThird(Numbers):
        def fault(self, numbers: list[int]) -> Exception | None:
            return RuntimeError("third") if len(self.batches) % 3 == 0 else None

    forward = executor_for(EveryThird())
    results = [values_of(forward([1, 2, 3, 4])) for _ in range(4)]
    assert results == [[1, 2, 3, 4]] * 4


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_out_of_memory_halves_the_batch_and_limits_later_ones(error: type[Exception]) -> None:
    model = Small(4, error)
    forward = executor_for(model)
    assert values_of(forward(range(16))) == list(range(16))
    assert [len(batch) for batch in model.batches] == [16, 8, 4, 4, 4, 4]
    assert forward.max_tiles == 4
    model.batches.clear()
    assert values_of(forward(range(8))) == list(range(8))
    assert [len(batch) for batch in model.batches] == [4, 4]


def test_an_image_that_is_too_large_by_itself_does_not_make_batches_smaller() -> None:
    model = Small(8)
    forward = executor_for(model, max_tiles=8)
    outcomes = values_of(forward([0, 1, 1000, 3, 4, 5, 6, 7]))
    assert outcomes == [0, 1, torch.OutOfMemoryError, 3, 4, 5, 6, 7]
    assert forward.max_tiles == 8


def test_the_limit_counts_tiles() -> None:
    class Tiled(VisionModel):
        hidden_size = 2

        def __init__(self) -> None:
            self.batches: list[int] = []

        def tower(self, pixels: torch.Tensor) -> torch.Tensor:
            self.batches.append(len(pixels))
            return pixels.flatten(2).transpose(1, 2)[..., :2]

        def assemble(self, features: torch.Tensor, inputs: ImageInputs) -> torch.Tensor:
            return features.flatten(0, 1)

    model = Tiled()
    outcomes = executor_for(model, 6)([ImageInputs(torch.ones(n, 3, 1, 1)) for n in (5, 1, 9, 1)])
    assert model.batches == [6, 9, 1]
    assert [len(o.rows) for o in outcomes if isinstance(o, ImageRows)] == [5, 1, 9, 1]


def test_wrong_rows_fail_their_image_without_another_forward() -> None:
    class Nan(Numbers):
        def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
            rows = list(super().forward(inputs))
            return [
                row / 0 if number == 2 else row for number, row in zip(inputs, rows, strict=True)
            ]

    model = Nan()
    assert values_of(executor_for(model)([1, 2, 3])) == [1, PluginContractError, 3]
    assert len(model.batches) == 1


def test_images_that_succeed_alone_do_not_fail_because_of_missing_results() -> None:
    class Few(Numbers):
        def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
            return super().forward(inputs)[:1]

    assert values_of(executor_for(Few())([1, 2, 3])) == [1, 2, 3]


def test_a_failed_forward_pass_keeps_no_tensors_alive() -> None:
    class Keeps(Numbers):
        def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
            held = torch.zeros(1000)
            raise RuntimeError(f"with {len(held)}")

    (error,) = executor_for(Keeps())([1])
    assert isinstance(error, RuntimeError)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    assert trace.tb_frame.f_code.co_name == "forward"
    assert "held" not in trace.tb_frame.f_locals


def test_every_forward_is_counted() -> None:
    meter = Meter()
    BatchExecutor(DeviceRunner(Numbers()), 8, meter)([1, POISON])
    stats = meter.stats()
    assert (stats.num_forwards, stats.num_tiles) == (3, 4)
    assert stats.batch_sizes == {1: 2, 2: 1}
    assert stats.forward_s > 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_errors_are_recognized(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_the_limit_is_raised_after_enough_successes() -> None:
    model = Small(4)
    forward = executor_for(model, max_tiles=16)
    forward(list(range(16)))
    assert forward.max_tiles == 4
    model.size = 16
    bounds = []
    for _ in range(200):
        forward([1])
        bounds.append(forward.max_tiles)
    assert sorted(set(bounds)) == [*bounds[:1], 8, 16]
    assert bounds[-1] == 16
    model.batches.clear()
    forward(list(range(16)))
    assert model.batches == [list(range(16))]

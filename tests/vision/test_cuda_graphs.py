from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vlcore.vision.cuda_graphs import GRAPH_SIZES, CudaGraphs, padded_size


class Tower:
    """Doubles pixels; remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        self.sizes.append(len(pixels))
        return pixels.flatten(2).transpose(1, 2) * 2


class Recorder:
    """Records as a device does: a replay reads and writes the same memory again."""

    def __init__(self) -> None:
        self.num_recorded = self.num_replayed = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], object]:
        self.num_recorded += 1
        work()

        def replay() -> None:
            self.num_replayed += 1
            work()

        return replay


def tiles(num: int, start: int = 0) -> Tensor:
    return torch.arange(start, start + num, dtype=torch.float32)[:, None, None, None].expand(
        num, 3, 2, 2
    )


@pytest.mark.parametrize(
    ("num_tiles", "size"),
    [(1, 1), (2, 2), (4, 4), (5, 6), (7, 8), (9, None), (10, 12), (13, 16), (16, 16), (17, None)],
)
def test_a_batch_is_padded_by_a_quarter_at_most(num_tiles: int, size: int | None) -> None:
    assert padded_size(num_tiles) == size


@pytest.mark.parametrize("num_tiles", range(1, 20))
def test_graphs_return_the_features_of_the_tower(num_tiles: int) -> None:
    graphs = CudaGraphs(Tower(), Recorder())
    for start in (0, 50):
        expected = Tower()(tiles(num_tiles, start))
        assert torch.equal(graphs(tiles(num_tiles, start)), expected)


def test_each_size_is_captured_once() -> None:
    record = Recorder()
    graphs = CudaGraphs(Tower(), record)
    for num_tiles in (*range(1, 17), *range(16, 0, -1)):
        graphs(tiles(num_tiles))
    assert record.num_recorded == len(GRAPH_SIZES)
    assert record.num_replayed == 2 * 15  # 9 tiles run as they are


def test_later_calls_do_not_overwrite_features() -> None:
    graphs = CudaGraphs(Tower(), Recorder())
    first = graphs(tiles(4))
    before = first.clone()
    graphs(tiles(4, 100))
    assert torch.equal(first, before)


def test_pixels_of_another_size_are_not_captured() -> None:
    record = Recorder()
    graphs = CudaGraphs(Tower(), record)
    graphs(tiles(2))
    wide = torch.ones(2, 3, 2, 5)
    assert torch.equal(graphs(wide), Tower()(wide))
    assert record.num_recorded == 1


def test_an_encoder_that_cannot_be_captured_runs_without_graphs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(work: Callable[[], None]) -> Callable[[], object]:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = CudaGraphs(Tower(), refuse)
    with caplog.at_level(logging.WARNING):
        for num_tiles in (3, 2, 3):
            assert torch.equal(graphs(tiles(num_tiles)), Tower()(tiles(num_tiles)))
    assert [record.message for record in caplog.records] == [
        "the vision encoder runs without CUDA graphs: it cannot be captured for 3 tile(s) "
        "(RuntimeError: operation not permitted when stream is capturing)"
    ]

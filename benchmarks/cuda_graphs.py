"""The CUDA graphs of a vision encoder: what each size costs to record and saves when replayed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _clip import EDGE, LARGE, TINY, random_model
from _cuda import DRY_RUN, device, device_name, free_memory, parser, synchronize
from measure import markdown_table, progress

from vlcore.vision.cuda_graphs import GRAPH_SIZES, CudaGraphs, CudaRecorder

NUM_LAYERS = 23
TITLE = "## CUDA graphs of the vision encoder\n"
HEADERS = [
    "tiles",
    "eager, ms",
    "replayed, ms",
    "times faster",
    "launching eagerly, ms",
    "launching a replay, ms",
    "recording, ms",
    "largest difference",
]


def milliseconds(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median milliseconds of a call until the device has finished, and until it returns."""
    whole, launching = [], []
    for _ in range(rounds):
        synchronize()
        started = time.perf_counter()
        work()
        launching.append(time.perf_counter() - started)
        synchronize()
        whole.append(time.perf_counter() - started)
    return 1000 * statistics.median(whole), 1000 * statistics.median(launching)


def run_directly(work: Callable[[], None]) -> Callable[[], object]:
    """Replace recording where there is no CUDA."""
    work()
    return work


def report(shape: dict[str, Any], num_layers: int, rounds: int) -> str:
    """Record every size and compare it with the vision encoder run eagerly."""
    on_cuda = device().type == "cuda"
    dtype = torch.float16 if on_cuda else torch.float32
    model = random_model(shape, num_layers)
    for module in (model._tower, model._projector):
        module.to(device(), dtype)
    graphs = CudaGraphs(model.tower, CudaRecorder() if on_cuda else run_directly)
    rows = []
    stream: Any = torch.cuda.Stream() if on_cuda else None  # type: ignore[no-untyped-call]
    with torch.inference_mode(), torch.cuda.stream(stream):
        for size in GRAPH_SIZES:
            progress(f"{size} tiles")
            pixels = torch.randn(size, 3, EDGE, EDGE, device=device(), dtype=dtype)
            eager = model.tower(pixels)
            synchronize()
            free_memory()
            started = time.perf_counter()
            replayed = graphs(pixels)
            synchronize()
            recording = 1000 * (time.perf_counter() - started)
            difference = float((replayed - eager).abs().max() / eager.abs().max())
            eager_ms, eager_launch = milliseconds(partial(model.tower, pixels), rounds)
            replay_ms, replay_launch = milliseconds(partial(graphs, pixels), rounds)
            rows.append(
                (
                    size,
                    f"{eager_ms:.2f}",
                    f"{replay_ms:.2f}",
                    f"{eager_ms / replay_ms:.2f}",
                    f"{eager_launch:.2f}",
                    f"{replay_launch:.2f}",
                    f"{recording:.0f}",
                    f"{difference:.1e}",
                )
            )
    return markdown_table(HEADERS, rows)


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, rounds=30).parse_args()
    print(TITLE)
    if not (options.dry_run or torch.cuda.is_available()):
        print("Not measured here: torch sees no CUDA device. Run it where there is one.\n")
        print(markdown_table(HEADERS, [(GRAPH_SIZES[0], *["not measured"] * 7)]))
        return
    tiny = options.quick or options.dry_run
    shape, layers, rounds = (TINY, 2, 1) if tiny else (LARGE, NUM_LAYERS, options.rounds)
    print(
        f"{DRY_RUN if options.dry_run else 'Measured'} on {device_name()}: {layers} layers of a "
        f"CLIP vision encoder of width {shape['hidden_size']} at {EDGE} pixels and a projector, "
        "random weights, float16, as the image encoder records it. A replay includes the copies of "
        "its input and output. The difference is relative to the largest feature. Medians of "
        f"{rounds} call(s).\n"
    )
    print(report(shape, layers, rounds))


if __name__ == "__main__":
    main()

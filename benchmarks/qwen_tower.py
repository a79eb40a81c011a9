"""How fast Qwen-VL's vision encoder runs, as a share of what `torch.mm` reaches at the same shapes.

A vision encoder of half the width of Qwen-VL's encodes one batch in float32 on the CPU. Matrices
of the same shapes are multiplied before and after every forward, and a ratio is taken to the mean
of the two. Only products are counted: linear layers, patches, and the two products of attention.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from measure import markdown_table, progress, ratios, spread
from torch import Tensor
from vl_plugin_qwen.tower import NUM_QUERIES, VisualConfig, VisualTower

MID_SIZE = {
    "heads": 8,
    "image_size": 448,
    "mlp_ratio": 4.9231,
    "output_dim": 2048,
    "patch_size": 14,
    "width": 832,
}

Shape = tuple[int, int, int]
"""Rows, inputs and outputs of a matrix product."""


def linear_shapes(config: VisualConfig, num_images: int) -> dict[Shape, int]:
    """List the shapes of the vision encoder's linear layers, and how many have each."""
    width, inner, outer = config.width, config.mlp_width, config.output_dim
    patches, rows = num_images * config.grid_size**2, num_images * NUM_QUERIES
    return {
        (patches, width, 3 * width): config.layers,
        (patches, width, width): config.layers,
        (patches, width, inner): config.layers,
        (patches, inner, width): config.layers,
        (patches, width, outer): 1,
        (patches, outer, outer): 2,
        (NUM_QUERIES, outer, outer): 1,
        (rows, outer, outer): 2,
    }


def num_operations(config: VisualConfig, num_images: int) -> int:
    """Count the multiplications and additions of all products in one forward."""
    patches = config.grid_size**2
    linear = sum(
        count * rows * inputs * outputs
        for (rows, inputs, outputs), count in linear_shapes(config, num_images).items()
    )
    embedding = num_images * patches * 3 * config.patch_size**2 * config.width
    in_trunk = config.layers * num_images * patches**2 * config.width
    in_pool = num_images * NUM_QUERIES * patches * config.output_dim
    return 2 * (linear + embedding + 2 * (in_trunk + in_pool))


def random_tower(config: VisualConfig) -> VisualTower:
    """Build a vision encoder with weights that keep its values finite."""
    tower = VisualTower(config).requires_grad_(False).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    tower.stretch_positions()
    return tower


def seconds(run: Callable[[], object]) -> float:
    """Time one run."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


class Products:
    """Matrix products of the vision encoder's shapes."""

    def __init__(self, shapes: dict[Shape, int]) -> None:
        self._counts = list(shapes.values())
        self._shapes = list(shapes)
        self._factors: list[tuple[Tensor, Tensor]] = [
            (torch.randn(rows, inputs), torch.randn(inputs, outputs))
            for rows, inputs, outputs in shapes
        ]

    def rate(self) -> float:
        """Give the operations a second of the shapes, each weighed by its number of layers."""
        operations = took = 0.0
        for count, (rows, inputs, outputs), (left, right) in zip(
            self._counts, self._shapes, self._factors, strict=True
        ):
            operations += count * 2 * rows * inputs * outputs
            took += count * seconds(partial(torch.mm, left, right))
        return operations / took


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one layer, one image, one round")
    options = parser.parse_args()
    if options.quick:
        options.layers = options.batch = options.rounds = 1
    torch.manual_seed(0)
    config = VisualConfig(layers=options.layers, **MID_SIZE)  # type: ignore[arg-type]
    tower = random_tower(config)
    pixels = torch.randn(options.batch, 3, config.image_size, config.image_size)
    products = Products(linear_shapes(config, options.batch))
    operations = num_operations(config, options.batch)
    tower_rates = []
    with torch.inference_mode():
        tower(pixels[:1])  # warm up
        products.rate()
        mm_rates = [products.rate()]
        for number in range(options.rounds):
            progress(f"round {number + 1} of {options.rounds}")
            tower_rates.append(operations / seconds(lambda: tower(pixels)))
            mm_rates.append(products.rate())
    around = [(before + after) / 2 for before, after in pairwise(mm_rates)]
    print("## Qwen-VL's vision encoder\n")
    print(
        f"Operations a second of a random vision encoder of half Qwen-VL's width ({config.width}) "
        f"with {config.layers} layers on {options.batch} images, float32 on the CPU with "
        f"{torch.get_num_threads()} threads, {operations / 1e12:.2f} TFLOP a forward: linear "
        "layers, patches and the two products of attention. Next to it `torch.mm` at the shapes of "
        "the vision encoder's linear layers, before and after each forward; a ratio is taken to "
        f"the mean of the two. Median (min..max) of {options.rounds} round(s); at least 0.85 is "
        "wanted.\n"
    )
    rows = [
        ("`torch.mm`", spread([rate / 1e9 for rate in mm_rates], 0), ""),
        (
            "tower",
            spread([rate / 1e9 for rate in tower_rates], 0),
            spread(ratios(tower_rates, around)),
        ),
    ]
    print(markdown_table(["", "GFLOP/s", "of `torch.mm`"], rows))


if __name__ == "__main__":
    main()

from __future__ import annotations

from typing import Any

import pytest

from vlcore.cluster.offline.resources import Replicas
from vlcore.errors import OptionError

CPU_NODE = {"CPU": 16.0}
GPU_NODE = {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([CPU_NODE], {}, Replicas(1, "cpu", 16, 0)),
        ([CPU_NODE, {"CPU": 8.0}], {}, Replicas(2, "cpu", 8, 0)),
        ([CPU_NODE], {"number": 3}, Replicas(3, "cpu", 5, 0)),
        ([CPU_NODE, CPU_NODE], {"number": 1}, Replicas(1, "cpu", 16, 0)),
        ([{"CPU": 1.0}], {"number": 4}, Replicas(4, "cpu", 0.25, 0)),
        ([{"CPU": 0.0}, CPU_NODE], {}, Replicas(1, "cpu", 16, 0)),  # a head without work
        ([GPU_NODE, CPU_NODE], {}, Replicas(8, "cuda", 8, 1)),
        ([GPU_NODE, GPU_NODE], {}, Replicas(16, "cuda", 8, 1)),
        ([GPU_NODE], {"num_gpus": 0.5}, Replicas(16, "cuda", 4, 0.5)),
        ([GPU_NODE], {"num_gpus": 0}, Replicas(1, "cpu", 64, 0)),
        ([GPU_NODE], {"device": "cpu"}, Replicas(1, "cpu", 64, 0)),
        ([GPU_NODE], {"number": 2, "num_cpus": 3}, Replicas(2, "cuda", 3, 1)),
        ([CPU_NODE], {"device": "cuda", "number": 4}, Replicas(4, "cuda", 1, 1)),  # will grow
        ([], {}, Replicas(1, "cpu", 1, 0)),
    ],
)
def test_what_is_not_chosen_follows_from_the_nodes(
    nodes: list[dict[str, float]], options: dict[str, Any], expected: Replicas
) -> None:
    assert Replicas.choose(nodes, **options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "the cluster has no GPUs"),
        ({"device": "cuda:1"}, "Ray chooses the GPU"),
        ({"device": "cpu", "num_gpus": 1}, "on the cpu uses no GPU"),
        ({"device": "cuda", "num_gpus": 0}, "needs a GPU or a fraction"),
        ({"number": 0}, "at least 1"),
        ({"num_cpus": -1}, "must not be negative"),
        ({"num_gpus": float("nan")}, "must not be negative"),
    ],
)
def test_what_cannot_be_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Replicas.choose([CPU_NODE], **options)


def test_an_encoder_fits_on_a_node_that_has_what_it_takes() -> None:
    replicas = Replicas(8, "cuda", 8, 0.5)
    assert replicas.fit_on([CPU_NODE, GPU_NODE])
    assert not replicas.fit_on([CPU_NODE])
    assert not replicas.fit_on([{"CPU": 4.0, "GPU": 8.0}])

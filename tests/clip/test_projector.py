from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vlcore.clip import mlp_projector


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_keys_count_every_layer(depth: int) -> None:
    plain = mlp_projector(3, 5, depth)
    assert {key: list(value.shape) for key, value in plain.state_dict().items()} == {
        f"{2 * layer}.{kind}": shape
        for layer in range(depth)
        for kind, shape in (("weight", [5, 5 if layer else 3]), ("bias", [5]))
    }
    normed = mlp_projector(3, 5, depth, bias=False, norms=True)
    linear = {f"{3 * layer}.weight" for layer in range(depth)}
    norms = {f"{3 * layer + 1}.{kind}" for layer in range(depth) for kind in ("weight", "bias")}
    assert set(normed.state_dict()) == linear | norms


def test_it_takes_no_memory_until_it_is_filled() -> None:
    assert all(parameter.is_meta for parameter in mlp_projector(3, 5, 2, norms=True).parameters())


@pytest.mark.parametrize("norms", [False, True])
def test_it_computes_linear_layers_with_exact_gelu_between(norms: bool) -> None:
    torch.manual_seed(0)
    projector = mlp_projector(3, 5, 2, norms=norms).to_empty(device="cpu")
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter)
    state = projector.state_dict()
    x = torch.randn(4, 3)

    def layer(x: torch.Tensor, index: int) -> torch.Tensor:
        x = F.linear(x, state[f"{index}.weight"], state[f"{index}.bias"])
        if not norms:
            return x
        return F.layer_norm(x, (5,), state[f"{index + 1}.weight"], state[f"{index + 1}.bias"], 1e-5)

    with torch.inference_mode():
        torch.testing.assert_close(
            projector(x), layer(F.gelu(layer(x, 0)), 3 if norms else 2), rtol=0, atol=0
        )

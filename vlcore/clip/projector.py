"""A projector of linear layers, from a tower's width to the language model's."""

from __future__ import annotations

from torch import nn

from vlcore.checkpoint.weights import empty_weights


def mlp_projector(
    width: int, hidden_size: int, depth: int, *, bias: bool = True, norms: bool = False
) -> nn.Sequential:
    """Build linear layers with an exact GELU between each two, for ``load_module`` to fill.

    Its keys count the layers, GELU and norms included, as ``nn.Sequential`` does.

    Args:
        width: of the tower.
        hidden_size: of the language model, and between the layers.
        depth: how many linear layers.
        bias: whether they have one.
        norms: a ``LayerNorm`` (epsilon 1e-5) stands after each.
    """
    layers: list[nn.Module] = []
    with empty_weights():
        for num_inputs in (width, *[hidden_size] * (depth - 1)):
            layers += [nn.GELU()] if layers else []
            layers.append(nn.Linear(num_inputs, hidden_size, bias=bias))
            layers += [nn.LayerNorm(hidden_size)] if norms else []
        return nn.Sequential(*layers)

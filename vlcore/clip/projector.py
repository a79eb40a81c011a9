"""A projector of linear layers, from the vision encoder to the language model."""

from __future__ import annotations

from torch import nn

from vlcore.checkpoint.weights import empty_weights


def mlp_projector(
    width: int, hidden_size: int, depth: int, *, bias: bool = True, norms: bool = False
) -> nn.Sequential:
    """Build linear layers with an exact GELU between them, to be filled by ``load_module``.

    Its keys number all layers, including GELU and norms, as in ``nn.Sequential``.

    Args:
        width: the hidden size of the vision encoder.
        hidden_size: the hidden size of the language model, and between the layers.
        depth: the number of linear layers.
        bias: whether the linear layers have a bias.
        norms: whether a ``LayerNorm`` (epsilon 1e-5) follows each linear layer.
    """
    layers: list[nn.Module] = []
    with empty_weights():
        for num_inputs in (width, *[hidden_size] * (depth - 1)):
            layers += [nn.GELU()] if layers else []
            layers.append(nn.Linear(num_inputs, hidden_size, bias=bias))
            layers += [nn.LayerNorm(hidden_size)] if norms else []
        return nn.Sequential(*layers)

"""Custom operators: what a compiled graph calls without tracing into it.

A graph holds no Python objects. An operator finds the function that it calls by a number in
a tensor, which is an input of the graph, so that one graph serves many layers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class Operator:
    """A function that compiled graphs call, as long as this object exists.

    Args:
        function: the function.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        number = next(number for number in count() if number not in _operators)
        _operators[number] = self
        self.handle = torch.tensor(number)
        """What a graph is given to call the function."""


_operators: WeakValueDictionary[int, Operator] = WeakValueDictionary()
_library: Any = cast("Any", torch.library).Library("vlcore", "DEF")
_library.define("decode_attention(Tensor query, Tensor key, Tensor value, Tensor handle) -> Tensor")
_library.define("product(Tensor activations, Tensor handle, int out_features) -> Tensor")


def decode_attention(query: Tensor, key: Tensor, value: Tensor, handle: Tensor) -> Tensor:
    """Call a function that is given a query, a key and a value from a compiled graph.

    Shapes:
        query: [sequences, heads, 1, head_dim].
        key, value: [sequences, key heads, 1, head_dim].
        handle: that of the :class:`Operator`.
        result: [sequences, 1, heads, head_dim of the values].
    """
    result: Tensor = torch.ops.vlcore.decode_attention(query, key, value, handle)
    return result


def matrix_product(activations: Tensor, handle: Tensor, out_features: int) -> Tensor:
    """Call a matrix product from a compiled graph.

    Shapes:
        activations: [..., in_features].
        handle: that of the :class:`Operator`.
        result: [..., out_features].
    """
    result: Tensor = torch.ops.vlcore.product(activations, handle, out_features)
    return result


def merge_equal_products(graph: torch.fx.Graph) -> None:
    """Compute the matrix products of a graph that have the same inputs once."""
    first: dict[Any, torch.fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target == torch.ops.vlcore.product:
            equal = first.setdefault(node.args, node)
            if equal is not node:
                node.replace_all_uses_with(equal)
                graph.erase_node(node)


def _decode_attention(query: Tensor, key: Tensor, value: Tensor, handle: Tensor) -> Tensor:
    return _operators[int(handle)].function(query, key, value).contiguous()


def _decode_attention_shape(query: Tensor, _key: Tensor, value: Tensor, _: Tensor) -> Tensor:
    return query.new_empty(query.shape[0], 1, query.shape[1], value.shape[3])


def _product(activations: Tensor, handle: Tensor, _: int) -> Tensor:
    return _operators[int(handle)].function(activations.contiguous())


def _product_shape(activations: Tensor, _: Tensor, out_features: int) -> Tensor:
    return activations.new_empty(*activations.shape[:-1], out_features)


_library.impl("decode_attention", _decode_attention, "CPU")
_library.impl("product", _product, "CPU")
torch.library.register_fake("vlcore::decode_attention", _decode_attention_shape, lib=_library)
torch.library.register_fake("vlcore::product", _product_shape, lib=_library)

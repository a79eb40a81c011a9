"""``LayerCompiler``: compiles decoder layers with ``torch.compile``, and records their calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vlcore.engines.transformers.graph_call import GraphCall
from vlcore.engines.transformers.operators import merge_equal_products

if TYPE_CHECKING:
    from vlcore.engines.transformers.kv_cache import KVCache

Graph = Callable[..., Sequence[Any]]


class LayerCompiler:
    """Compiles layers when they are called within :meth:`use`, each as one graph.

    Args:
        layers: the layers.
        cache: the cache that the model is given.
    """

    def __init__(self, layers: Sequence[nn.Module], cache: KVCache) -> None:
        self.calls: list[list[GraphCall]] = [[] for _ in layers]
        """The calls of each layer."""
        self._layers = layers
        self._cache = cache
        self._untouched_cache = _UntouchedCache(len(cache.layers))
        self._graph_calls: list[tuple[Graph, tuple[Any, ...], Sequence[Any]]] = []

        def compute(layer: nn.Module, hidden_states: Tensor, **arguments: Any) -> Any:
            return type(layer).forward(layer, hidden_states, **arguments)

        # torch keeps compiled graphs with the code of a function. A copy of it is freed with self.
        compute.__code__ = compute.__code__.replace()
        self._compiled = torch.compile(compute, fullgraph=True, dynamic=True, backend=self._compile)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Let compiled code compute the layers."""
        settings = {
            "specialize_float": True,  # the epsilon of a norm is a constant of the graph
            "recompile_limit": 2 * len(self._layers),  # all layers may be different
        }
        try:
            for index, layer in enumerate(self._layers):
                layer.forward = partial(self._forward, index)
            with warnings.catch_warnings(), torch._dynamo.config.patch(settings):
                # The compiler uses parts of torch that torch itself calls deprecated.
                warnings.simplefilter("ignore", DeprecationWarning)
                yield
        finally:
            for layer in self._layers:
                del layer.forward

    def _forward(self, index: int, hidden_states: Tensor, **arguments: Any) -> Any:
        given = {
            name: self._untouched_cache if value is self._cache else value
            for name, value in arguments.items()
        }
        result = self._compiled(self._layers[index], hidden_states, **given)
        graph_call = self._graph_calls.pop()
        self.calls[index].append(GraphCall(*graph_call, hidden_states, arguments, result))
        return result

    def _compile(self, graph_module: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Graph:
        from torch._inductor.compile_fx import compile_fx

        merge_equal_products(graph_module.graph)
        graph_module.recompile()
        # The loops of a step are too short for threads, of which the products have their own.
        settings = {"cpp.threads": 1}
        graph = cast("Graph", compile_fx(graph_module, inputs, config_patches=settings))

        def recorded(*inputs: Any) -> Sequence[Any]:
            outputs = graph(*inputs)
            self._graph_calls.append((graph, inputs, outputs))
            return outputs

        return recorded


def has_compiler() -> bool:
    """Return whether there is a C++ compiler for ``torch.compile``."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


class _UntouchedCache(Cache):
    """The cache of a compiled model, which leaves keys and values to the operator of attention."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=cast("Any", [None] * num_layers))

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
        return query_length, 0

    @property
    def is_compileable(self) -> bool:
        return False

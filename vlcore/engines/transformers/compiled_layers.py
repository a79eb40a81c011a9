"""``CompiledLayers``: the decoder layers of a model, compiled for decoding steps.

The compiler joins the norms, rotary embeddings, activations and additions of a layer. Attention
with its cache, and the matrix products of packed weights, are operators that the graph calls.
Layers of the same kind share two graphs: one for several sequences, and one for a single sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vlcore.engines.transformers.attention import (
    COMPILED,
    ObservedAttention,
    compute_attention,
    observed_attention,
)
from vlcore.engines.transformers.graph_call import CannotRepeatError, RepeatedCall
from vlcore.engines.transformers.kv_cache import KVCache
from vlcore.engines.transformers.layer_compiler import LayerCompiler, has_compiler
from vlcore.engines.transformers.operators import Operator
from vlcore.errors import EngineUnavailableError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNUSED = frozenset({"position_ids", "cache_position", "position_embeddings"})
"""Tensors that models pass to attention, which torch's and transformers' functions ignore."""


class CompiledLayers:
    """Compiles the decoder layers of a model for decoding steps.

    Within :meth:`use`, the layers are computed by the graphs, and otherwise as before.

    Args:
        model: a loaded model on a CPU.
        cache: the cache that the model writes and reads.
        run: runs a decoding step of a number of sequences.
        max_num_seqs: maximum number of sequences.

    Raises:
        EngineUnavailableError: there is no C++ compiler, the compiler fails, or the model does not
            allow it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: KVCache,
        run: Callable[[int], object],
        max_num_seqs: int,
    ) -> None:
        self._name = type(model).__name__
        if cache.has_states:
            raise self._unavailable("some of its layers keep a state instead of keys and values")
        with observed_attention() as observed:
            run(1)
        sites = list(self._find_sites(cache, observed))
        self._layers = [one for one in model.modules() if _is_decoder_layer(one)]
        if not self._layers:
            raise self._unavailable("it has no decoder layers of the kind of transformers' models")
        if not has_compiler():
            raise EngineUnavailableError(
                "compile=True needs a C++ compiler, and none was found: install g++ or clang, or "
                "set the environment variable CXX to the path of one"
            )
        self._operators = [Operator(partial(_attend, site)) for site in sites]
        for site, operator in zip(sites, self._operators, strict=True):
            setattr(site.module, COMPILED, operator.handle)
        self._calls: dict[tuple[int, bool], RepeatedCall] = {}
        """How each layer is computed, by its index and whether there is a single sequence."""
        self._is_used = False
        # Several numbers of sequences show which inputs of a graph depend on it, and that one graph
        # serves them all.
        sizes = {max_num_seqs, max_num_seqs - 1, max_num_seqs // 2, 3, 2}
        many = sorted((size for size in sizes if 1 < size <= max_num_seqs), reverse=True)
        if many:
            self._compile(cache, run, many)
        self._compile(cache, run, [1])
        for index, layer in enumerate(self._layers):
            layer.forward = partial(self._forward, index, layer.forward)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Compute the layers by their graphs."""
        self._is_used = True
        try:
            yield
        finally:
            self._is_used = False

    def _forward(
        self, index: int, forward: Callable[..., Any], hidden_states: Tensor, **arguments: Any
    ) -> Any:
        if not self._is_used:
            return forward(hidden_states, **arguments)
        return self._calls[index, len(hidden_states) == 1](hidden_states, arguments)

    def _compile(self, cache: KVCache, run: Callable[[int], object], sizes: Sequence[int]) -> None:
        """Compile the layers for some numbers of sequences."""
        compiler = LayerCompiler(self._layers, cache)
        try:
            with compiler.use():
                # Twice, so that each number of sequences comes with different tensors.
                for size in (*sizes, *sizes):
                    run(size)
            for index, calls in enumerate(compiler.calls):
                self._calls[index, sizes == [1]] = RepeatedCall(calls)
        except CannotRepeatError as error:
            raise self._unavailable(str(error)) from error
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = " ".join(lines[:2]).removesuffix(".")
            raise self._unavailable(f"{type(error).__name__}: {reason}") from error

    def _find_sites(
        self, cache: KVCache, observed: list[ObservedAttention]
    ) -> Iterator[ObservedAttention]:
        """Check that operators can replace attention, and leave out options without effect."""
        layers = [layer for layer in cache.key_value_layers if layer.is_initialized]
        by_layer = [one.layer for one in observed]
        if len(set(map(id, by_layer))) < len(by_layer) or len(by_layer) < len(layers):
            raise self._unavailable("several of its layers share keys and values")
        if len({id(one.module) for one in observed}) < len(observed):
            raise self._unavailable("it computes several layers by one module")
        for one in observed:
            if not one.is_unchanged:
                raise self._unavailable(
                    f"{type(one.module).__name__} computes the keys and values of its attention "
                    "from the cached ones"
                )
            options = {k: v for k, v in one.options.items() if k not in _UNUSED}
            for option, value in options.items():
                if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                    raise self._unavailable(
                        f"{type(one.module).__name__} gives its attention a tensor, {option}"
                    )
            yield replace(one, options=options)

    def _unavailable(self, reason: str) -> EngineUnavailableError:
        return EngineUnavailableError(
            f"the decoding step of {self._name} cannot be compiled: {reason}. Leave out "
            "compile=True (--compile)"
        )


def _is_decoder_layer(module: nn.Module) -> bool:
    return isinstance(module, GradientCheckpointingLayer) and "forward" not in vars(module)


def _attend(site: ObservedAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Store the new keys and values of a layer, and compute its attention."""
    keys, values = site.layer.update(key, value)
    return compute_attention(
        site.attention, site.module, site.layer, query, keys, values, site.options
    )

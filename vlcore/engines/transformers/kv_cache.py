"""``KVCache``: the keys and values of all sequences, in the columns of one tensor for each layer.

The keys of a layer are a tensor [heads, columns, head_dim], and so are its values. A sequence has a
region of consecutive columns, in the order of its tokens, which is as long as the sequence can
become. Nothing is padded: sequences of any lengths are stored one after another, and added, grow
and are removed without shifting the others. Layers without attention keep a state for each running
sequence instead.

A forward pass receives the cache as ``past_key_values``. Each layer of the model calls
:meth:`KVCache.update` with its new keys and values, [sequences, heads, tokens, head_dim], which
stores them in the columns that :meth:`KVCache.begin` was called with. It then calls the function
of ``attention``, which reads the columns of each sequence, or of several sequences at once if they
have about the same length and their regions are at equal distances. In a decoding step the model
sees ``input_ids`` [sequences, 1], ``position_ids`` [sequences, 1] and a mask of one element;
columns, lengths and masks do not pass through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from vlcore.engines.transformers.attention_masks import STATES, layer_types
from vlcore.engines.transformers.cache_layer import AttentionCall, CacheLayer, Decode, Prefill
from vlcore.engines.transformers.state_layer import make_state_layer

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class KVCache(Cache):
    """The cache that a transformers model writes and reads.

    Call :meth:`begin` before each forward pass.

    Args:
        config: configuration of the language model.

    Raises:
        EngineUnavailableError: the engine does not support the type of some layers.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        self._layers: list[CacheLayer] = [
            make_state_layer() if kind in STATES else KeyValueLayer(kind)
            for kind in layer_types(config)
        ]
        self.num_columns = 0
        """Number of allocated columns."""
        super().__init__(layers=cast("Any", list(self._layers)))

    @property
    def key_value_layers(self) -> list[KeyValueLayer]:
        """The layers with attention."""
        return [layer for layer in self._layers if isinstance(layer, KeyValueLayer)]

    @property
    def has_states(self) -> bool:
        """Whether some layers keep a state of all earlier tokens, which padding would change."""
        return len(self.key_value_layers) < len(self._layers)

    @property
    def bytes_per_token(self) -> int:
        """Size of one token's keys and values in all layers; 0 before the first forward pass."""
        return sum(layer.bytes_per_token for layer in self._layers)

    @property
    def bytes_per_sequence(self) -> int:
        """Size of one sequence's states in all layers; 0 before the first forward pass."""
        return sum(layer.bytes_per_sequence for layer in self._layers)

    def reserve(self, num_columns: int) -> None:
        """Enlarge the cache to a number of columns, and keep its contents."""
        for layer in self._layers:
            layer.reserve(num_columns)
        self.num_columns = num_columns

    def begin(self, step: Prefill | Decode) -> None:
        """Let the next forward pass compute parts of prompts, or one token of each sequence."""
        for layer in self._layers:
            layer.begin(step)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy ``length`` columns from one column on to another one; they may overlap."""
        for layer in self._layers:
            layer.copy(source, target, length)

    def clear(self, start: int, length: int) -> None:
        """Set columns that may hold NaN to zero, because no mask hides NaN."""
        for layer in self._layers:
            layer.clear(start, length)

    def arrange(self, rows: Sequence[int]) -> None:
        """Set the order of the running sequences.

        Args:
            rows: the former index of each of them; those of the prompts that were computed last
                follow those of the sequences that were running.
        """
        for layer in self._layers:
            layer.arrange(rows)


class KeyValueLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """The keys and values of one layer, [heads, columns, head_dim] each.

    Args:
        kind: the type of the layer.
    """

    is_sliding = False
    is_compileable = False
    bytes_per_sequence = 0
    keys: Tensor
    values: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = kind
        self.bytes_per_token = 0
        self.calls: Sequence[AttentionCall] = ()
        """How the attention of the current forward pass is computed."""
        self.is_read = False
        """Whether ``attention`` has read the layer in the current forward pass."""
        self.is_causal = True
        """Whether no token of the model attends to later ones, unless a prompt states so."""
        self._step: Prefill | Decode
        self._num_columns = 0

    def begin(self, step: Prefill | Decode) -> None:
        """Prepare for the next forward pass."""
        self._step = step
        self.calls = step.calls[self.kind]
        self.is_read = False

    def reserve(self, num_columns: int) -> None:
        """Enlarge the layer to a number of columns, and keep its contents."""
        self._num_columns = num_columns
        if self.is_initialized:
            self._set(*(_enlarged(states, num_columns) for states in (self.keys, self.values)))

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy columns, which may overlap."""
        overlaps = abs(target - source) < length
        for states in self._both:
            copied = states[:, source : source + length]
            states[:, target : target + length] = copied.clone() if overlaps else copied

    def clear(self, start: int, length: int) -> None:
        """Set columns to zero."""
        for states in self._both:
            states[:, start : start + length].zero_()

    def arrange(self, rows: Sequence[int]) -> None:
        """Do nothing, because keys and values stay where they are."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the columns, for keys and values like the given ones."""
        both = (key_states, value_states)
        shapes = [(states.shape[1], self._num_columns, states.shape[3]) for states in both]
        self._set(*(s.new_zeros(shape) for s, shape in zip(both, shapes, strict=True)))
        self.is_initialized = True
        self.bytes_per_token = sum(states[:, 0].nbytes for states in self._both)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the keys and values of a forward pass.

        Returns:
            What is attended to: the given tensors, or the columns of the cache, [1, heads,
            columns, head_dim], of which ``attention`` reads those of each sequence. A model may
            compute the keys and values of its attention from them, column by column.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        step = self._step
        for states, new in ((self.keys, key_states), (self.values, value_states)):
            if isinstance(step, Decode):
                states.index_copy_(1, step.columns, new[:, :, 0].transpose(0, 1))
                continue
            for columns, one in zip(step.columns, new, strict=True):
                states[:, columns.start : columns.stop] = one[:, : len(columns)]
        if self._attends_to_new:
            return LayerStates.of(self, key_states), LayerStates.of(self, value_states)
        return self._columns

    def holds(self, keys: Tensor, values: Tensor) -> bool:
        """Return whether these are the columns that :meth:`update` returned, unchanged."""
        return keys is self._columns[0] and values is self._columns[1]

    def plain(self, states: Tensor) -> Tensor:
        """Return keys or values as a plain tensor, whose operations take less time."""
        if states is self._columns[0]:
            return self._plain[0]
        if states is self._columns[1]:
            return self._plain[1]
        return states.as_subclass(Tensor)

    def attended(self, call: AttentionCall, states: Tensor) -> Tensor:
        """Return the keys or the values that the sequences of a call attend to.

        Args:
            call: the call.
            states: what :meth:`update` returned, or what the model computed from it, as a plain
                tensor.

        Shapes:
            result: [sequences, heads, columns, head_dim].
        """
        if self._attends_to_new:
            return states
        return _strided(states, call.rows.stop - call.rows.start, call)

    @property
    def _attends_to_new(self) -> bool:
        return isinstance(self._step, Prefill) and self._step.begins

    @property
    def _both(self) -> tuple[Tensor, ...]:
        """The keys and the values; nothing where the model's layer has those of another one."""
        return (self.keys, self.values) if self.is_initialized else ()

    def _set(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self._plain = keys[None], values[None]
        self._columns = LayerStates.of(self, keys[None]), LayerStates.of(self, values[None])

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Return the size of the mask that the model is given in place of a real one."""
        # The first releases of transformers 5 pass the positions of the queries.
        return len(query_length) if isinstance(query_length, Tensor) else query_length, 0

    def get_seq_length(self) -> int:
        """Return 0, because a forward pass states the positions of its tokens."""
        return 0

    def get_max_length(self) -> int:
        """Return -1, for no maximum."""
        return -1

    def get_max_cache_shape(self) -> int:
        """Return -1, like :meth:`get_max_length`, which is its newer name."""
        return -1


class LayerStates(Tensor):
    """Keys or values of a layer.

    What a model computes from them belongs to the layer as well: some models keep compressed keys
    and values, and expand them before attention.
    """

    cache_layer: KeyValueLayer

    @classmethod
    def of(cls, layer: KeyValueLayer, states: Tensor) -> LayerStates:
        """Return a view of keys or values of a layer."""
        view = states.as_subclass(cls)
        view.cache_layer = layer
        return view

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Compute what an operation computes of tensors, and name the layer of its results."""
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        sources = (
            source for arg in args for source in (arg if isinstance(arg, tuple | list) else [arg])
        )
        layer = next((source.cache_layer for source in sources if isinstance(source, cls)), None)
        if layer is not None:
            for one in result if isinstance(result, tuple | list) else [result]:
                if isinstance(one, cls):
                    one.cache_layer = layer
        return result


def _strided(states: Tensor, num_rows: int, call: AttentionCall) -> Tensor:
    """Read equally distant columns of all heads, [1, heads, columns, head_dim], as
    [sequences, heads, columns, head_dim]."""
    _, by_head, by_column, by_element = states.stride()
    _, num_heads, _, head_dim = states.shape
    return states.as_strided(
        (num_rows, num_heads, call.length, head_dim),
        (call.stride * by_column, by_head, by_column, by_element),
        states.storage_offset() + call.start * by_column,
    )


def _enlarged(states: Tensor, num_columns: int) -> Tensor:
    """Copy columns to a tensor with more of them, whose others are zero."""
    num_heads, num_old, head_dim = states.shape
    enlarged = states.new_zeros(num_heads, num_columns, head_dim)
    enlarged[:, :num_old] = states
    return enlarged

"""``RepeatedCall``: calls a compiled graph without looking up which of its inputs change.

``torch.compile`` checks in each call that a compiled graph still belongs to the Python code, and
reads the graph's inputs from the objects of that code. For a layer that never changes, both are
superfluous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch import Tensor


class CannotRepeatError(Exception):
    """It is not known where the inputs of a graph come from."""


@dataclass(frozen=True)
class GraphCall:
    """A call of a layer that was computed by a graph."""

    graph: Callable[..., Sequence[Any]]
    inputs: tuple[Any, ...]
    """The inputs of the graph."""
    outputs: Sequence[Any]
    """The outputs of the graph."""
    hidden_states: Tensor
    """The first argument of the layer."""
    arguments: Mapping[str, Any]
    """The other arguments of the layer."""
    result: Any
    """The result of the layer."""


class _ArgumentPath(NamedTuple):
    """Where an argument is: its name, and the item if it is a tuple or a list."""

    name: str
    item: int | None = None

    def read(self, arguments: Mapping[str, Any]) -> Any:
        value = arguments[self.name]
        return value if self.item is None else value[self.item]


class RepeatedCall:
    """Calls the graph of a layer.

    Args:
        calls: earlier calls of the layer, with different tensors and numbers of sequences.

    Raises:
        CannotRepeatError: the calls do not show where the inputs and the result come from.
    """

    def __init__(self, calls: Sequence[GraphCall]) -> None:
        first = calls[0]
        if any(call.graph is not first.graph for call in calls):
            raise CannotRepeatError("its graph depends on the number of sequences")
        self._graph = first.graph
        self._inputs = list(first.inputs)
        """The inputs, of which some are replaced in each call."""
        self._hidden_states: list[int] = []
        self._sizes: list[int] = []
        self._arguments: list[tuple[int, _ArgumentPath]] = []
        for number in range(len(self._inputs)):
            inputs = [call.inputs[number] for call in calls]
            pairs = list(zip(calls, inputs, strict=True))
            if all(value is call.hidden_states for call, value in pairs):
                self._hidden_states.append(number)
                self._inputs[number] = None
            elif path := _common_argument(pairs):
                self._arguments.append((number, path))
                self._inputs[number] = None
            elif all(isinstance(value, int) for value in inputs):
                if any(value != len(call.hidden_states) for call, value in pairs):
                    raise CannotRepeatError("a number other than that of the sequences changes")
                self._sizes.append(number)
            elif any(value is not inputs[0] for value in inputs):
                raise CannotRepeatError("a tensor in it changes that is not an argument")
        outputs = [
            {i for i, output in enumerate(call.outputs) if output is call.result} for call in calls
        ]
        common = set.intersection(*outputs)
        if not common:
            raise CannotRepeatError("a layer returns something else than a tensor that it computes")
        self._output = min(common)

    def __call__(self, hidden_states: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Call the graph with the tensors that are arguments of the layer."""
        inputs = self._inputs.copy()
        for number in self._hidden_states:
            inputs[number] = hidden_states
        for number in self._sizes:
            inputs[number] = len(hidden_states)
        for number, path in self._arguments:
            inputs[number] = path.read(arguments)
        return cast("Tensor", self._graph(*inputs)[self._output])


def _common_argument(pairs: Sequence[tuple[GraphCall, Any]]) -> _ArgumentPath | None:
    """Return an argument that is the input of the graph in all calls."""
    for path in _arguments_of(pairs[0][0].arguments):
        try:
            if all(path.read(call.arguments) is value for call, value in pairs):
                return path
        except (LookupError, TypeError):
            continue
    return None


def _arguments_of(arguments: Mapping[str, Any]) -> Iterator[_ArgumentPath]:
    for name, value in arguments.items():
        if isinstance(value, tuple | list):
            yield from (_ArgumentPath(name, index) for index in range(len(value)))
        else:
            yield _ArgumentPath(name)

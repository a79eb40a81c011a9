from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vlcore.engines.transformers.graph_call import CannotRepeatError, GraphCall, RepeatedCall

WEIGHT = torch.full((2,), 3.0)


def graph(hidden_states: Tensor, size: int, weight: Tensor, cos: Tensor) -> list[Tensor]:
    return [hidden_states, (hidden_states + size) * weight * cos]


def call_of(num_sequences: int, **changed: Any) -> GraphCall:
    """Call a layer of a model, which computes what the graph computes."""
    hidden_states, cos = torch.randn(num_sequences, 2), torch.randn(num_sequences, 2)
    inputs = changed.pop("inputs", None) or (hidden_states, num_sequences, WEIGHT, cos)
    outputs = graph(*inputs)
    values: dict[str, Any] = {
        "graph": graph,
        "inputs": inputs,
        "outputs": outputs,
        "hidden_states": hidden_states,
        "arguments": {"mask": None, "position_embeddings": (cos, cos + 1)},
        "result": outputs[1],
    }
    return GraphCall(**values | changed)


def test_a_call_is_repeated_with_other_tensors_and_another_number_of_sequences() -> None:
    repeated = RepeatedCall([call_of(4), call_of(3), call_of(4)])
    hidden_states, cos = torch.randn(2, 2), torch.randn(2, 2)
    result = repeated(hidden_states, {"mask": None, "position_embeddings": (cos, None)})
    assert torch.equal(result, (hidden_states + 2) * WEIGHT * cos)


def test_a_graph_for_one_number_of_sequences_alone_is_not_repeated() -> None:
    calls = [call_of(4), call_of(3, graph=lambda *inputs: graph(*inputs))]
    with pytest.raises(CannotRepeatError, match="depends on the number"):
        RepeatedCall(calls)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": (torch.ones(3, 2), 3, WEIGHT, torch.ones(3, 2))}, "a tensor in it changes"),
        ({"result": (torch.ones(3, 2),)}, "returns something else"),
    ],
)
def test_inputs_or_a_result_of_unknown_origin_are_refused(
    changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(CannotRepeatError, match=message):
        RepeatedCall([call_of(4), call_of(3, **changed)])


def test_a_number_that_is_not_that_of_the_sequences_is_refused() -> None:
    call = call_of(3)
    hidden_states, _, weight, cos = call.inputs
    changed = call_of(
        3,
        hidden_states=hidden_states,
        arguments=call.arguments,
        inputs=(hidden_states, 7, weight, cos),
    )
    with pytest.raises(CannotRepeatError, match="a number other than"):
        RepeatedCall([call_of(4), changed])

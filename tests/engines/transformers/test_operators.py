from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, fx
from torch.testing import assert_close

from vlcore.engines.transformers.operators import (
    Operator,
    decode_attention,
    matrix_product,
    merge_equal_products,
)


def doubled(activations: Tensor) -> Tensor:
    return 2 * activations


def test_an_operator_calls_its_function_as_long_as_it_exists() -> None:
    operator = Operator(doubled)
    tokens = torch.randn(3, 4)
    assert_close(matrix_product(tokens, operator.handle, 4), 2 * tokens)
    handle = operator.handle
    del operator
    gc.collect()
    with pytest.raises(KeyError):
        matrix_product(tokens, handle, 4)


def test_an_operator_of_attention_is_given_the_query_the_key_and_the_value() -> None:
    operator = Operator(lambda query, key, value: (query + key + value).transpose(1, 2))
    query, key, value = torch.randn(3, 2, 4, 1, 8)
    result = decode_attention(query, key, value, operator.handle)
    assert_close(result, (query + key + value).transpose(1, 2))


def test_equal_products_of_a_graph_are_computed_once() -> None:
    calls = list[Tensor]()

    def increased(activations: Tensor) -> Tensor:
        calls.append(activations)
        return activations + 1

    operator, other = Operator(increased), Operator(doubled)

    def compute(tokens: Tensor, handle: Tensor, other_handle: Tensor) -> Tensor:
        first = matrix_product(tokens, handle, 4)
        second = matrix_product(tokens, handle, 4)
        return first * second + matrix_product(tokens, other_handle, 4)

    traced = fx.symbolic_trace(compute)
    merge_equal_products(traced.graph)
    traced.recompile()
    tokens = torch.randn(3, 4)
    result = traced(tokens, operator.handle, other.handle)
    assert_close(result, (tokens + 1) ** 2 + 2 * tokens)
    assert len(calls) == 1

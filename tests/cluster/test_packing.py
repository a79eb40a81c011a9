from __future__ import annotations

import pickle

import pytest
import torch

from vlcore.cluster.packing import pack, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_embeddings_are_unpacked_as_they_were_without_a_copy(dtype: torch.dtype) -> None:
    rows = torch.randn(5, 8).to(dtype)
    packed = pack(rows)
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(packed, protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 1
    assert len(message) < 300
    arrived = unpack(pickle.loads(message, buffers=buffers))  # noqa: S301  (made here)
    assert arrived.dtype is dtype
    assert torch.equal(arrived, rows)
    assert arrived.data_ptr() == rows.data_ptr()


def test_embeddings_that_are_a_view_are_packed() -> None:
    rows = torch.arange(12.0).reshape(4, 3).T
    assert torch.equal(unpack(pack(rows)), rows)

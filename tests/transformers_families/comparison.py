"""Comparisons of what an engine receives with what transformers makes of a conversation."""

from __future__ import annotations

import torch

from transformers_families.conversations import ReferencePrompt
from transformers_families.runs import Answer


def compare_token_ids(answer: Answer, expected: ReferencePrompt, label: str) -> None:
    assert answer.request is not None, (label, answer.error)
    prompt = answer.request.prompt
    filled = {i for span in prompt.spans for i in range(span.start, span.stop)}
    assert set(expected.image_positions) <= filled, label
    assert [(i, token) for i, token in enumerate(prompt.token_ids) if i not in filled] == [
        (i, token) for i, token in enumerate(expected.token_ids) if i not in filled
    ], label


def compare_inputs(answer: Answer, expected: ReferencePrompt, label: str) -> None:
    """Compare embeddings of images, what is added after decoder layers, and positions."""
    request = answer.request
    assert request is not None, (label, answer.error)
    for span in request.prompt.spans:
        rows = request.rows[span.image][span.first_row :][: span.stop - span.start]
        width = expected.embeddings.shape[-1]
        assert_close(rows[:, :width], expected.embeddings[span.start : span.stop], label)
        if expected.deepstack is not None:
            first = expected.image_positions.index(span.start)
            layers = expected.deepstack[:, first : first + len(rows)]
            assert_close(rows[:, width:], layers.transpose(0, 1).flatten(1), label)
    if (position_ids := request.inputs.position_ids) is not None:
        assert expected.positions is not None
        reference_ids = expected.positions[-len(position_ids) :].flatten(0, -2)
        assert torch.equal(position_ids, reference_ids), label


def assert_close(actual: torch.Tensor, expected: torch.Tensor, label: str) -> None:
    """Compare with a tolerance that is relative to the largest value."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=2e-5 * scale, msg=lambda text: f"{label}: {text}"
    )

"""Checks against a reference file: what another implementation computed."""

from __future__ import annotations

import torch
from torch import Tensor

from vlcore.testing.check import check
from vlcore.testing.reference import Reference, ReferencePrompt
from vlcore.testing.report import DoesNotApplyError, fail
from vlcore.testing.samples import encode
from vlcore.testing.subject import Subject


@check("reference-rows", "rows are those of the reference file, where one is given")
def reference_rows(subject: Subject) -> None:
    """Encode its pictures."""
    reference = _reference(subject)
    if not reference.rows:
        raise DoesNotApplyError(f"{reference.path} holds no pictures")
    for number, image in enumerate(reference.pictures):
        rows = encode(subject.vision_model, [image])[0].rows
        where = f"picture {number} of {reference.path} ({image.width} x {image.height} pixels)"
        _compare(rows, reference.rows[number], reference.rows_tolerance, where, reference)


@check("reference-logits", "logits are those of the reference file, where one is given")
def reference_logits(subject: Subject) -> None:
    """Put the recorded rows among the embeddings of its prompts."""
    reference = _reference(subject)
    if not reference.prompts:
        raise DoesNotApplyError(f"{reference.path} holds no prompts")
    for number, prompt in enumerate(reference.prompts):
        logits = _logits(subject, prompt, reference)[-len(prompt.logits) :]
        where = f"prompt {number} of {reference.path}, last {len(prompt.logits)} positions"
        _compare(logits, prompt.logits, reference.logits_tolerance, where, reference)


def _reference(subject: Subject) -> Reference:
    if subject.reference is None:
        raise DoesNotApplyError("no reference file was given")
    return subject.reference


def _logits(subject: Subject, prompt: ReferencePrompt, reference: Reference) -> Tensor:
    """Compute with the recorded rows, so that a fault of the vision part is not seen twice."""
    model = subject.text_model
    embed = model.get_input_embeddings()
    pieces = []
    for token_id in prompt.token_ids:
        if token_id < 0:
            pieces.append(reference.rows[-1 - token_id].to(subject.device, subject.dtype))
        else:
            pieces.append(embed(torch.tensor([token_id], device=subject.device)))
    with torch.inference_mode():
        logits: Tensor = model(inputs_embeds=torch.cat(pieces)[None]).logits[0]
    return logits


def _compare(
    values: Tensor, expected: Tensor, tolerance: float, where: str, reference: Reference
) -> None:
    source = f" ({reference.source})" if reference.source else ""
    came = f"a tensor {list(values.shape)}"
    if values.shape == expected.shape:
        expected = expected.to(values.device, torch.float32)
        difference = float((values.float() - expected).abs().max() / expected.abs().max())
        if difference <= tolerance:
            return
        came = f"values that differ by {difference:.2g} of the largest"
    fail(
        expected=f"what was recorded{source}: {list(expected.shape)}, to {tolerance:g} of the "
        "largest value",
        came=came,
        where=where,
        advice="compare stage by stage: pixels, hidden states, projector; norms and their epsilon",
    )

"""Checks against a reference file, recorded from the reference implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from vlcore.inference.prompt_builder import PromptBuilder
from vlcore.testing.check import check
from vlcore.testing.conversations import first_difference, ids_with_embeddings
from vlcore.testing.reference import Reference, ReferencePrompt
from vlcore.testing.report import DoesNotApplyError, fail
from vlcore.testing.samples import encode
from vlcore.testing.subject import Subject


@check("reference-rows", "rows equal those of the reference file, if one is given")
def reference_rows(subject: Subject) -> None:
    """Encode the images of the file."""
    reference = _reference(subject)
    if not reference.rows:
        raise DoesNotApplyError(f"{reference.path} contains no images")
    for number, image in enumerate(reference.pictures):
        rows = encode(subject.vision_model, [image])[0].rows
        where = f"image {number} of {reference.path} ({image.width} x {image.height} pixels)"
        _compare(rows, reference.rows[number], reference.rows_tolerance, where, reference)


@check("reference-logits", "logits equal those of the reference file, if one is given")
def reference_logits(subject: Subject) -> None:
    """Insert the recorded embeddings into the prompts of the file."""
    reference = _reference(subject)
    if not reference.prompts:
        raise DoesNotApplyError(f"{reference.path} contains no prompts")
    for number, prompt in enumerate(reference.prompts):
        logits = _logits(subject, prompt, reference)[-len(prompt.logits) :]
        where = f"prompt {number} of {reference.path}, last {len(prompt.logits)} positions"
        _compare(logits, prompt.logits, reference.logits_tolerance, where, reference)


@check(
    "reference-conversations",
    "token ids of conversations equal those of the reference file, if one is given",
)
def reference_conversations(subject: Subject) -> None:
    """Build the prompts of the file's conversations."""
    reference = _reference(subject)
    if not reference.conversations:
        raise DoesNotApplyError(f"{reference.path} contains no conversations")
    subject.need("vision_model", "template", "prompt_tokenizer")
    builder = PromptBuilder(subject.stages())
    for number, conversation in enumerate(reference.conversations):
        actual = ids_with_embeddings(builder.build(conversation.messages), -1)
        expected = list(conversation.token_ids)
        if actual != expected:
            source = f" ({reference.source})" if reference.source else ""
            first = first_difference(actual, expected)
            fail(
                expected=f"the recorded ids{source}: {len(expected)}, from position {first} "
                f"{expected[first : first + 12]}",
                actual=f"{len(actual)} ids, from there {actual[first : first + 12]}",
                where=f"conversation {number} of {reference.path}",
                advice="compare the chat template, expand, restarts_after_image, and the number of "
                "embeddings (vlcore explain --messages)",
            )


def _reference(subject: Subject) -> Reference:
    if subject.reference is None:
        raise DoesNotApplyError("no reference file was given")
    return subject.reference


def _logits(subject: Subject, prompt: ReferencePrompt, reference: Reference) -> Tensor:
    """Use the recorded embeddings, so that a fault of the vision encoder is not reported twice."""
    model = subject.text_model
    embed = model.get_input_embeddings()
    embeddings = []
    for token_id in prompt.token_ids:
        if token_id < 0:
            embeddings.append(reference.rows[-1 - token_id].to(subject.device, subject.dtype))
        else:
            embeddings.append(embed(torch.tensor([token_id], device=subject.device)))
    with torch.inference_mode():
        logits: Tensor = model(inputs_embeds=torch.cat(embeddings)[None]).logits[0]
    return logits


def _compare(
    values: Tensor, expected: Tensor, tolerance: float, where: str, reference: Reference
) -> None:
    source = f" ({reference.source})" if reference.source else ""
    actual = f"a tensor {list(values.shape)}"
    if values.shape == expected.shape:
        expected = expected.to(values.device, torch.float32)
        difference = float((values.float() - expected).abs().max() / expected.abs().max())
        if difference <= tolerance:
            return
        actual = f"values that differ by {difference:.2g} of the largest"
    fail(
        expected=f"the recorded values{source}: {list(expected.shape)}, to {tolerance:g} of the "
        "largest value",
        actual=actual,
        where=where,
        advice="compare stage by stage: pixels, hidden states, projector; norms and their epsilon",
    )

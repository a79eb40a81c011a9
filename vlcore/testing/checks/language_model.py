"""Checks of the language model: its tensors, its tokenizer and the text view."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlcore.checkpoint.conversion import TensorConversion
from vlcore.errors import TensorError
from vlcore.testing.check import check
from vlcore.testing.needed_features import needed_features
from vlcore.testing.report import DoesNotApplyError, fail
from vlcore.testing.subject import Subject
from vlcore.testing.transformers_reference import quiet_transformers

_TOLERANCE = 1e-4
_TEXT = "What is in this image? A dog, and two cats."


@check("language-loads", "vl_language_model returns a LanguageModel that transformers knows")
def language_loads(subject: Subject) -> None:
    """Load the description; no weights are read."""
    language_model = subject.load("language_model")
    if language_model.hidden_size < 1 or language_model.context_length < 2:
        fail(
            expected="a positive width, and a context of at least two tokens",
            actual=f"{language_model.hidden_size} and {language_model.context_length}",
            where=f"{type(language_model).__name__}",
            advice="check hidden_size and max_position_embeddings of the text configuration",
        )


@check(
    "requires-declared",
    "requires names what config.json shows that the language model needs of an engine",
)
def requires_declared(subject: Subject) -> None:
    """Look for positions on several axes, deepstack, attention in both directions and the like."""
    language_model = subject.language_model
    for feature, source in needed_features(subject.checkpoint.config).items():
        if feature in language_model.requires:
            continue
        fail(
            expected=f"{feature!r} in requires, because of {source}",
            actual=f"requires is {sorted(language_model.requires)}",
            where=type(language_model).__name__,
            advice="name the feature in LanguageModel.requires, and implement it: an engine "
            "without it computes something else. If no engine of vlcore offers it, let vl_match "
            "return the reason. If this checkpoint does not use it, declare an expected failure",
        )


@check("tokenizer-loads", "the tokenizer loads, and can tokenize text without special tokens")
def tokenizer_loads(subject: Subject) -> None:
    """Load the tokenizer, and tokenize a text."""
    subject.load("tokenizer")
    tokenizer = subject.load("prompt_tokenizer")
    ids = tokenizer.encode_plain(_TEXT)
    num_embeddings = int(subject.language_model.transformers_config.vocab_size)
    if not ids or max(ids) >= num_embeddings:
        fail(
            expected=f"token ids in 0..{num_embeddings - 1}",
            actual=f"{ids[:20]}",
            where=f"tokenizer of {type(subject.language_model).__name__}, {_TEXT!r}",
            advice="the tokenizer does not match the model's vocabulary",
        )


@check("text-tensors", "every tensor of the language model's standard architecture is found")
def text_tensors(subject: Subject) -> None:
    """Build the transformers model; missing, unexpected and wrongly shaped tensors are listed."""
    try:
        model = subject.load("text_model")
    except TensorError as error:
        fail(
            expected=f"a source for each tensor of {subject.language_model.architecture}",
            actual=str(error),
            where=f"tensors of {type(subject.language_model).__name__}",
            advice="check the prefixes passed to renamed, and the sizes in the configuration",
        )
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if empty:
        fail(
            expected="weights in every parameter",
            actual=f"none in {', '.join(empty[:20])}",
            where=f"to_transformers of {type(subject.language_model).__name__}",
            advice="give each one a source in tensors",
        )


@check("view-tensors", "the text view lists every text tensor, and no tensor of the vision encoder")
def view_tensors(subject: Subject) -> None:
    """Read the index of the view."""
    _need_text_only_class(subject)
    view = subject.load("text_view")
    listed = _listed(view)
    expected = set(subject.text_model.state_dict())
    tied = set(getattr(subject.text_model, "all_tied_weights_keys", None) or {})
    # Checkpoints and views have a tensor for each expert, where transformers merges them.
    converted = TensorConversion(subject.text_model, listed)
    where = f"write_view of {type(subject.language_model).__name__}, its index"
    if foreign := sorted(key for key in listed - expected if key not in converted):
        fail(
            expected=f"tensors of {subject.language_model.architecture} only",
            actual=f"{len(foreign)} more: {', '.join(foreign[:20])}",
            where=where,
            advice="remove them from tensors: an engine would load everything in the index",
        )
    if missing := sorted(expected - tied - listed - converted.targets):
        fail(
            expected=f"every tensor of {subject.language_model.architecture}",
            actual=f"{len(missing)} are missing: {', '.join(missing[:20])}",
            where=where,
            advice="give each one a source in tensors",
        )


@check("view-logits", "the text view loads in transformers, and computes the same logits")
def view_logits(subject: Subject) -> None:
    """Load the view as an ordinary text model, and compare it with the original model."""
    from transformers import AutoModelForCausalLM

    _need_text_only_class(subject)
    load: Any = AutoModelForCausalLM.from_pretrained  # its annotation lacks output_loading_info
    with quiet_transformers():
        loaded, loading_info = load(
            subject.text_view,
            dtype=subject.dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    # transformers reads whole shards, including tensors that the index does not list.
    loading_info["unexpected_keys"] = set(loading_info["unexpected_keys"]) & _listed(
        subject.text_view
    )
    wrong = {kind: sorted(map(str, names)) for kind, names in loading_info.items() if names}
    where = f"write_view of {type(subject.language_model).__name__}, loaded by transformers"
    if wrong:
        fail(
            expected="no missing, unexpected or wrongly shaped key",
            actual=str(wrong)[:500],
            where=where,
            advice="compare the index of the view with the architecture in its config.json",
        )
    ids = torch.tensor([subject.prompt_tokenizer.encode_plain(_TEXT)], device=subject.device)
    logits = _logits(loaded.to(subject.device).eval(), ids)
    original = _logits(subject.text_model, ids)
    tolerance = max(_TOLERANCE, torch.finfo(subject.dtype).eps * 4)
    difference = float((logits - original).abs().max() / original.abs().max())
    if not difference <= tolerance:
        fail(
            expected=f"the logits of to_transformers, to {tolerance:g} of the largest",
            actual=f"logits that differ by {difference:.2g} of the largest",
            where=where,
            advice="compare the view's config.json and tensors with those of to_transformers",
        )


def _need_text_only_class(subject: Subject) -> None:
    """Leave out the checks of a view that no engine could load as a text model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = subject.language_model.transformers_config
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise DoesNotApplyError(
            f"transformers has no text-only class for {type(config).__name__} that could load a "
            "view"
        )


def _listed(view: Path) -> set[str]:
    index = json.loads((view / "model.safetensors.index.json").read_text("utf-8"))
    return set(index["weight_map"])


def _logits(model: Any, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids).logits.float()
    return logits

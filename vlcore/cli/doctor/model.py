"""Findings on a model: its plugin, its engine and its memory. No weights are read.

Every stage is loaded from the headers of the weight files, so missing and unexpected tensors and
tensors of a wrong shape are found as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlcore._utils.device import as_device, choose_dtype, free_bytes
from vlcore._utils.sizes import readable_size
from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.checkpoint.headers import HeaderCheckpoint
from vlcore.cli.doctor.installation import Finding, Verdict
from vlcore.engines.sampling_defaults import read_sampling_defaults
from vlcore.engines.selection import unsupported_reasons
from vlcore.engines.transformers.batch import Batch
from vlcore.engines.transformers.engine import CACHE_SHARE
from vlcore.engines.transformers.meta_device import META, measure_cache
from vlcore.engines.transformers.weight_packing import num_copied_bytes
from vlcore.errors import VlcoreError
from vlcore.plugins.stages import ModelStages

if TYPE_CHECKING:
    from vlcore.language.model import LanguageModel

_NO_VALUE = (NotImplementedError, RuntimeError, TypeError, ValueError)
"""What torch raises if a value of a tensor on the meta device is read."""


@dataclass(frozen=True)
class MemoryNeed:
    """The memory that a model needs on a device."""

    vision_bytes: int | None
    """``None`` if the plugin reads values of weights while loading, so they cannot be counted."""
    text_bytes: int
    bytes_per_token: int | None
    """Size of the keys and values of a token; ``None`` if the language model reads values of
    weights while it runs, so they cannot be counted."""
    bytes_per_sequence: int
    """Size of the states of a sequence of any length."""
    context_length: int

    @property
    def weight_bytes(self) -> int:
        """Size of all weights, as far as it is known."""
        return (self.vision_bytes or 0) + self.text_bytes

    @property
    def context_bytes(self) -> int | None:
        """Size of the keys, values and states of a full context, if it is known."""
        if self.bytes_per_token is None:
            return None
        return self.bytes_per_token * self.context_length + self.bytes_per_sequence


def diagnose_model(
    model: str | Path,
    *,
    device: torch.device | str = "auto",
    dtype: torch.dtype | str = "auto",
    plugin: str | None = None,
    chat_template: str | None = None,
    revision: str | None = None,
) -> Iterator[Finding]:
    """Check a model stage by stage, until a problem makes further checks impossible.

    The arguments are those of :func:`~vlcore.pipeline`. Problems are yielded, never raised.
    """
    try:
        target_device = as_device(device)
        opened = Checkpoint.open(model, revision=revision)
        precision = choose_dtype(dtype, target_device, opened.config)
    except VlcoreError as error:
        yield Finding("checkpoint", Verdict.PROBLEM, str(error))
        return
    checkpoint = HeaderCheckpoint.from_checkpoint(opened)
    architectures = checkpoint.config.get("architectures")
    yield Finding(
        "checkpoint", Verdict.FINE, f"{opened.name}, {architectures}", {"name": opened.name}
    )
    try:
        stages = ModelStages(checkpoint, plugin=plugin)
    except VlcoreError as error:
        yield Finding("served by", Verdict.PROBLEM, str(error))
        return
    info = stages.plugin.info
    facts = {"distribution": info.distribution, "version": info.version}
    yield Finding("served by", Verdict.FINE, f"{info.distribution} {info.version}", facts)
    yield from _Stages(stages, checkpoint, target_device, precision, chat_template).findings()


class _Stages:
    """The stages of one model, each loaded without weights."""

    def __init__(
        self,
        stages: ModelStages,
        checkpoint: HeaderCheckpoint,
        device: torch.device,
        dtype: torch.dtype,
        template_name: str | None,
    ) -> None:
        self._stages = stages
        self._checkpoint = checkpoint
        self._device = device
        self._dtype = dtype
        self._template_name = template_name
        self._counted: set[tuple[str, str]] = set()

    def findings(self) -> Iterator[Finding]:
        """Load each stage and report the result, then the total memory."""
        vision_bytes, finding = self._vision_encoder()
        yield finding
        yield self._template()
        try:
            language_model = self._stages.language_model()
            text_bytes, batch, finding = self._language_model(language_model)
        except Exception as error:
            yield _problem("language model", error)
            return
        yield finding
        yield _tokenizer(language_model)
        yield _sampling_defaults(language_model)
        yield _engine(language_model, self._device, self._dtype)
        yield from self._download()
        need = MemoryNeed(
            vision_bytes,
            text_bytes,
            None if batch is None else batch.bytes_per_token,
            0 if batch is None else batch.bytes_per_sequence,
            language_model.context_length,
        )
        yield _memory(need, self._device)

    def _vision_encoder(self) -> tuple[int | None, Finding]:
        try:
            model = self._stages.vision_model(META, self._dtype)
        except Exception as error:
            self._count()
            cause = error.__cause__ or error
            if isinstance(cause, _NO_VALUE) and "meta" in str(cause).lower():
                return None, _unknown_size(cause)
            return 0, _problem("vision encoder", error)
        num_bytes = self._count()
        size = f"{readable_size(num_bytes)} in {_name(self._dtype)}"
        text = f"{size}, embeddings of width {model.hidden_size}"
        return num_bytes, Finding("vision encoder", Verdict.FINE, text, {"num_bytes": num_bytes})

    def _template(self) -> Finding:
        try:
            template = self._stages.chat_template(self._template_name)
        except Exception as error:
            return _problem("template", error)
        return Finding("template", Verdict.FINE, type(template).__name__)

    def _language_model(self, language_model: LanguageModel) -> tuple[int, Batch | None, Finding]:
        """Build the model on the meta device, and run one token, which computes nothing."""
        model = language_model.to_transformers(META, self._dtype)
        num_bytes = self._count()
        try:
            batch = measure_cache(model)
        except VlcoreError:
            raise
        except Exception:  # the model may well run on other devices
            batch = None
        text = (
            f"{language_model.architecture}, {readable_size(num_bytes)} in {_name(self._dtype)}, "
            f"context of {language_model.context_length} tokens"
        )
        facts = {
            "architecture": language_model.architecture,
            "num_bytes": num_bytes,
            "context_length": language_model.context_length,
        }
        num_copied = num_copied_bytes(model) if self._device.type == "cpu" else 0
        return num_bytes + num_copied, batch, Finding("language model", Verdict.FINE, text, facts)

    def _count(self) -> int:
        """Size of the tensors that were requested since the last call."""
        new = self._checkpoint.used.keys() - self._counted
        self._counted |= new
        return sum(self._checkpoint.used[key].num_bytes for key in new)

    def _download(self) -> Iterator[Finding]:
        """Compare the size of the missing weight files with the free disk space."""
        used = self._checkpoint.used.values()
        missing = [tensor for tensor in used if not tensor.file.exists()]
        if not missing:
            return
        num_bytes = sum(tensor.num_stored_bytes for tensor in missing)
        free = shutil.disk_usage(self._checkpoint.directory).free
        facts = {"num_bytes": num_bytes, "free_bytes": free}
        text = (
            f"{readable_size(num_bytes)} of weights are not downloaded yet; the disk has "
            f"{readable_size(free)} free"
        )
        if num_bytes > free:
            text += ": set HF_HOME to a directory on a larger disk"
        verdict = Verdict.PROBLEM if num_bytes > free else Verdict.NOTE
        yield Finding("download", verdict, text, facts)


def _tokenizer(language_model: LanguageModel) -> Finding:
    try:
        tokenizer = language_model.tokenizer()
    except Exception as error:
        return _problem("tokenizer", error)
    return Finding("tokenizer", Verdict.FINE, f"{len(tokenizer)} tokens")


def _sampling_defaults(language_model: LanguageModel) -> Finding:
    try:
        defaults = read_sampling_defaults(language_model.checkpoint)
    except Exception as error:
        return _problem("sampling", error)
    text = "generation_config.json has no sampling values"
    if defaults:
        values = ", ".join(f"{name} {value:g}" for name, value in defaults.items())
        text = f"{values}: defaults of vlcore serve, from generation_config.json"
    return Finding("sampling", Verdict.FINE, text, {"defaults": defaults})


def _engine(language_model: LanguageModel, device: torch.device, dtype: torch.dtype) -> Finding:
    reasons = unsupported_reasons(language_model, device, dtype)
    selected = next((name for name, reason in reasons.items() if reason is None), None)
    facts = {"engine": selected, "device": str(device), "dtype": _name(dtype), "reasons": reasons}
    unsupported = "; ".join(f"not {name}: {reason}" for name, reason in reasons.items() if reason)
    if selected is None:
        return Finding(
            "engine", Verdict.PROBLEM, f"no engine can run the model: {unsupported}", facts
        )
    text = f"{selected}, on {device} in {_name(dtype)}"
    return Finding("engine", Verdict.FINE, f"{text}; {unsupported}" if unsupported else text, facts)


def _memory(need: MemoryNeed, device: torch.device) -> Finding:
    free = free_bytes(device)
    available = int(max(0, free - need.weight_bytes) * CACHE_SHARE)
    num_tokens = None
    if need.bytes_per_token is not None:
        num_tokens = max(0, available - need.bytes_per_sequence) // max(1, need.bytes_per_token)
    facts: dict[str, Any] = {
        "vision_bytes": need.vision_bytes,
        "text_bytes": need.text_bytes,
        "weight_bytes": need.weight_bytes,
        "cache_bytes_per_token": need.bytes_per_token,
        "cache_bytes_per_sequence": need.bytes_per_sequence,
        "context_bytes": need.context_bytes,
        "free_bytes": free,
        "num_cached_tokens": num_tokens,
    }
    which = "weights of the language model only" if need.vision_bytes is None else "weights"
    weights = f"{readable_size(need.weight_bytes)} of {which}"
    if need.bytes_per_token is None or need.context_bytes is None or num_tokens is None:
        text = (
            f"{weights}; {device} has {readable_size(free)} free. The size of the KV cache cannot "
            "be determined in advance, because the language model reads values while it runs"
        )
        return Finding("memory", Verdict.NOTE, text, facts)
    text = (
        f"{weights}, and {readable_size(need.bytes_per_token)} per token in the KV cache, which is "
        f"{readable_size(need.context_bytes)} for a full context; {device} has "
        f"{readable_size(free)} free"
    )
    if num_tokens < 2:
        text += ", which is too little: use a smaller dtype or a larger device"
        return Finding("memory", Verdict.PROBLEM, text, facts)
    if num_tokens < need.context_length:
        text += f", enough for {num_tokens} of {need.context_length} tokens"
        return Finding("memory", Verdict.NOTE, text, facts)
    return Finding("memory", Verdict.FINE, text, facts)


def _problem(topic: str, error: Exception) -> Finding:
    text = str(error) if isinstance(error, VlcoreError) else f"{type(error).__name__}: {error}"
    return Finding(topic, Verdict.PROBLEM, text)


def _unknown_size(error: BaseException) -> Finding:
    text = (
        "its memory cannot be determined in advance, because the plugin reads values of weights "
        f"while loading: {error}"
    )
    return Finding("vision encoder", Verdict.NOTE, text)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

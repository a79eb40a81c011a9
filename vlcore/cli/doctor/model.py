"""Whether a model will run here, on which engine, and in how much memory; its weights are not read.

Every stage is loaded from the headers of the weight files, so tensors that are missing, unexpected
or misshapen are found as well.
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
from vlcore.engines.selection import unsupported_reasons
from vlcore.engines.transformers.batch import Batch
from vlcore.engines.transformers.engine import CACHE_SHARE
from vlcore.errors import VlcoreError
from vlcore.plugins.stages import ModelStages

if TYPE_CHECKING:
    from vlcore.language.model import LanguageModel

_META = torch.device("meta")
_NO_VALUE = (NotImplementedError, RuntimeError, TypeError, ValueError)
"""What torch raises where the value of a tensor on the meta device is asked for."""


@dataclass(frozen=True)
class MemoryNeed:
    """What a model takes of a device."""

    vision_bytes: int | None
    """Unknown where the plugin looks at values of weights while it loads them."""
    text_bytes: int
    bytes_per_token: int
    """Of keys and values."""
    context_length: int

    @property
    def weight_bytes(self) -> int:
        """Of both parts, as far as they are known."""
        return (self.vision_bytes or 0) + self.text_bytes

    @property
    def context_bytes(self) -> int:
        """Of the keys and values of one whole context."""
        return self.bytes_per_token * self.context_length


def diagnose_model(
    model: str | Path,
    *,
    device: torch.device | str = "auto",
    dtype: torch.dtype | str = "auto",
    plugin: str | None = None,
    chat_template: str | None = None,
    revision: str | None = None,
) -> Iterator[Finding]:
    """Look at a model, stage by stage, up to the first without which nothing more can be said.

    The arguments are those of :func:`~vlcore.pipeline`. Nothing that is wrong is raised.
    """
    try:
        place = as_device(device)
        opened = Checkpoint.open(model, revision=revision)
        precision = choose_dtype(dtype, place, opened.config)
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
    yield from _Stages(stages, checkpoint, place, precision, chat_template).findings()


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
        """Load each stage and tell how that went, then what it all takes."""
        vision_bytes, found = self._vision_part()
        yield found
        yield self._template()
        try:
            language_model = self._stages.language_model()
            text_bytes, bytes_per_token, found = self._text_part(language_model)
        except Exception as error:
            yield _failed("text part", error)
            return
        yield found
        yield _tokenizer(language_model)
        yield _engine(language_model, self._device, self._dtype)
        yield from self._download()
        need = MemoryNeed(vision_bytes, text_bytes, bytes_per_token, language_model.context_length)
        yield _memory(need, self._device)

    def _vision_part(self) -> tuple[int | None, Finding]:
        try:
            model = self._stages.vision_model(_META, self._dtype)
        except Exception as error:
            self._count()
            cause = error.__cause__ or error
            if isinstance(cause, _NO_VALUE) and "meta" in str(cause).lower():
                return None, _uncounted(cause)
            return 0, _failed("vision part", error)
        num_bytes = self._count()
        text = f"{readable_size(num_bytes)} in {_name(self._dtype)}, rows of {model.hidden_size}"
        return num_bytes, Finding("vision part", Verdict.FINE, text, {"num_bytes": num_bytes})

    def _template(self) -> Finding:
        try:
            template = self._stages.chat_template(self._template_name)
        except Exception as error:
            return _failed("template", error)
        return Finding("template", Verdict.FINE, type(template).__name__)

    def _text_part(self, language_model: LanguageModel) -> tuple[int, int, Finding]:
        """Build it on the meta device, and run a token through it, which computes nothing."""
        model = language_model.to_transformers(_META, self._dtype)
        num_bytes = self._count()
        with torch.inference_mode():
            bytes_per_token = Batch(model, _META, 1).measure_bytes_per_token()
        text = (
            f"{language_model.architecture}, {readable_size(num_bytes)} in {_name(self._dtype)}, "
            f"context of {language_model.context_length} tokens"
        )
        facts = {
            "architecture": language_model.architecture,
            "num_bytes": num_bytes,
            "context_length": language_model.context_length,
        }
        return num_bytes, bytes_per_token, Finding("text part", Verdict.FINE, text, facts)

    def _count(self) -> int:
        """Sum up what was asked for since the last call."""
        new = self._checkpoint.used.keys() - self._counted
        self._counted |= new
        return sum(self._checkpoint.used[key].num_bytes for key in new)

    def _download(self) -> Iterator[Finding]:
        """Compare what is still to be fetched with the room on the disk."""
        used = self._checkpoint.used.values()
        absent = [tensor for tensor in used if not tensor.file.exists()]
        if not absent:
            return
        num_bytes = sum(tensor.num_stored_bytes for tensor in absent)
        free = shutil.disk_usage(self._checkpoint.directory).free
        facts = {"num_bytes": num_bytes, "free_bytes": free}
        text = (
            f"{readable_size(num_bytes)} of weights are still to be fetched; the disk has "
            f"{readable_size(free)} free"
        )
        if num_bytes > free:
            text += ": set HF_HOME to a larger disk"
        verdict = Verdict.PROBLEM if num_bytes > free else Verdict.NOTE
        yield Finding("download", verdict, text, facts)


def _tokenizer(language_model: LanguageModel) -> Finding:
    try:
        tokenizer = language_model.tokenizer()
    except Exception as error:
        return _failed("tokenizer", error)
    return Finding("tokenizer", Verdict.FINE, f"{len(tokenizer)} tokens")


def _engine(language_model: LanguageModel, device: torch.device, dtype: torch.dtype) -> Finding:
    reasons = unsupported_reasons(language_model, device, dtype)
    chosen = next((name for name, reason in reasons.items() if reason is None), None)
    facts = {"engine": chosen, "device": str(device), "dtype": _name(dtype), "reasons": reasons}
    told = "; ".join(f"not {name}: {reason}" for name, reason in reasons.items() if reason)
    if chosen is None:
        return Finding("engine", Verdict.PROBLEM, f"none can run it: {told}", facts)
    text = f"{chosen}, on {device} in {_name(dtype)}"
    return Finding("engine", Verdict.FINE, f"{text}; {told}" if told else text, facts)


def _memory(need: MemoryNeed, device: torch.device) -> Finding:
    free = free_bytes(device)
    room = int(max(0, free - need.weight_bytes) * CACHE_SHARE)
    num_tokens = room // need.bytes_per_token
    facts: dict[str, Any] = {
        "vision_bytes": need.vision_bytes,
        "text_bytes": need.text_bytes,
        "weight_bytes": need.weight_bytes,
        "cache_bytes_per_token": need.bytes_per_token,
        "context_bytes": need.context_bytes,
        "free_bytes": free,
        "num_cached_tokens": num_tokens,
    }
    which = "text weights alone" if need.vision_bytes is None else "weights"
    text = (
        f"{readable_size(need.weight_bytes)} of {which}, and "
        f"{readable_size(need.bytes_per_token)} for each token in the cache, which makes "
        f"{readable_size(need.context_bytes)} for a whole context; {device} has "
        f"{readable_size(free)} free"
    )
    if num_tokens < 2:
        text += ", which is not enough: use a smaller dtype or a larger device"
        return Finding("memory", Verdict.PROBLEM, text, facts)
    if num_tokens < need.context_length:
        text += f", enough for {num_tokens} tokens of the {need.context_length}"
        return Finding("memory", Verdict.NOTE, text, facts)
    return Finding("memory", Verdict.FINE, text, facts)


def _failed(topic: str, error: Exception) -> Finding:
    told = str(error) if isinstance(error, VlcoreError) else f"{type(error).__name__}: {error}"
    return Finding(topic, Verdict.PROBLEM, told)


def _uncounted(error: BaseException) -> Finding:
    text = (
        "its memory cannot be told beforehand, because the plugin looks at values of weights "
        f"while it loads them: {error}"
    )
    return Finding("vision part", Verdict.NOTE, text)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

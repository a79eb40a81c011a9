"""TurboMind, lmdeploy's engine, which receives image embeddings by embedding injection."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlcore.engines.base import EngineRequest, EngineStats
from vlcore.engines.external.engine import ExternalEngine
from vlcore.engines.external.prompt import HostPrompt
from vlcore.engines.external.self_test import next_logits, run_self_test
from vlcore.engines.external.sequence import ExternalSequence
from vlcore.engines.turbomind.requests import InstancePool, TurbomindRequest
from vlcore.engines.turbomind.support import embedding_name, lmdeploy_version
from vlcore.engines.turbomind.translation import MAX_VALUES, check_options, to_turbomind
from vlcore.errors import EngineUnavailableError, OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vlcore.language.model import LanguageModel


class TurbomindEngine(ExternalEngine):
    """Runs the language model of a checkpoint on TurboMind.

    Args:
        language_model: the language model.
        tokenizer: decodes the answers.
        view: directory of the language model's text view, which TurboMind loads.
        device: the CUDA device, unless ``config`` lists devices.
        dtype: dtype of the computation, unless there is a ``config``.
        config: lmdeploy's ``TurbomindEngineConfig``, which is passed on unchanged.
        self_test: check before the first request that injected embeddings have the right effect.

    Raises:
        EngineUnavailableError: lmdeploy cannot be imported, TurboMind cannot start, or the
            self-test failed.
    """

    name = "turbomind"
    library = TurbomindRequest.library
    max_values = MAX_VALUES

    def __init__(
        self,
        language_model: LanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        view: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        config: Any = None,
        self_test: bool = True,
    ) -> None:
        self._lmdeploy = _import_lmdeploy()
        settings = config or self._lmdeploy.TurbomindEngineConfig(
            dtype=str(dtype).removeprefix("torch."),
            devices=[torch.cuda.current_device() if device.index is None else device.index],
            session_len=language_model.context_length,
        )
        self._model = self._load(view, settings)
        super().__init__(language_model, tokenizer)
        self._settings = self._model.engine_config
        self._dtype = getattr(torch, self._settings.dtype)
        self._limit_context(self._model.session_len, language_model)
        self._instances = InstancePool(self._model.create_instance, self._settings.max_batch_size)
        if self_test:
            embedding = embedding_name(language_model.view_config["architectures"][0])
            library = f"lmdeploy {lmdeploy_version()}"
            try:
                self._run_self_test(run_self_test(self, view, embedding, next_logits, library))
            except BaseException:
                self._free()
                raise

    def stats(self) -> EngineStats:
        """Count the instances in use, and the answers that wait for one."""
        num_running = self._instances.num_in_use
        return EngineStats(num_running, max(0, len(self._requests) - num_running))

    def check(self, request: EngineRequest) -> None:
        """Check a request against the model and against the limits of TurboMind."""
        super().check(request)
        check_options(request.config, self._stop_conditions.for_request(request).token_ids)
        if request.config.output_logits == "all" and self._settings.enable_prefix_caching:
            raise OptionError(
                "output_logits='all' returns the logits of the whole prompt, which TurboMind does "
                "not compute with enable_prefix_caching: switch one of them off"
            )

    def _make_request(self, sequence: ExternalSequence, prompt: HostPrompt) -> TurbomindRequest:
        return TurbomindRequest(sequence, prompt, self._instances, self._make_options)

    def _make_options(self, sequence: ExternalSequence) -> Any:
        """Create lmdeploy's options for the rest of an answer."""
        eos_token_ids = self._stop_conditions.eos_token_ids.intersection(range(self.vocab_size))
        options = to_turbomind(sequence.continuation(self.vocab_size), eos_token_ids)
        return self._lmdeploy.GenerationConfig(**options)

    def _load(self, view: Path, settings: Any) -> Any:
        """Start TurboMind on a text view.

        Raises:
            EngineUnavailableError: TurboMind cannot start.
        """
        from lmdeploy.turbomind import TurboMind

        try:
            return TurboMind.from_pretrained(str(view), engine_config=settings)
        except Exception as error:
            cause = error.with_traceback(None)  # a traceback would keep what it allocated alive
        reason = f"{type(cause).__name__}: {cause}"
        hint = ""
        if isinstance(cause, torch.OutOfMemoryError) or "out of memory" in reason.lower():
            hint = (
                ". Free memory on the device, let TurboMind use less of it "
                "(TurbomindEngineConfig(cache_max_entry_count=0.5)), or use more devices (tp=2)"
            )
        raise EngineUnavailableError(
            f"TurboMind (lmdeploy {lmdeploy_version()}) cannot start on {view}: {reason}{hint}"
        ) from cause

    def _free(self) -> None:
        self._loop.close()
        self._instances.clear()
        model, self._model = self._model, None
        if model is not None:
            model.close()


def _import_lmdeploy() -> Any:
    """Import the module of lmdeploy's settings.

    Raises:
        EngineUnavailableError: lmdeploy or its extension module cannot be imported.
    """
    # lmdeploy's own pipeline sets the same level, because it would log every request.
    is_quiet = os.environ.setdefault("TM_LOG_LEVEL", "WARNING") == "WARNING"
    levels = {handler: handler.level for handler in logging.root.handlers}
    try:
        from lmdeploy import messages, turbomind
    except Exception as error:
        raise EngineUnavailableError(
            f"lmdeploy {lmdeploy_version()} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        for handler, level in levels.items():  # lmdeploy mutes the handlers that exist
            handler.setLevel(level)
    logger = logging.getLogger("lmdeploy")
    if is_quiet and logger.level == logging.INFO:  # which it sets when it is imported
        logger.setLevel(logging.WARNING)
    if not turbomind.is_available():
        cause = getattr(turbomind, "_import_error", None)
        raise EngineUnavailableError(
            f"lmdeploy {lmdeploy_version()} cannot load TurboMind: {cause}: are the libraries of "
            "CUDA 12 (nvidia-cublas-cu12, nvidia-cuda-runtime-cu12, nvidia-nccl-cu12) installed?"
        ) from cause
    return messages

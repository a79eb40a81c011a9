"""vLLM as an engine, which receives image embeddings as prompt embeddings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlcore._utils.device import free_bytes
from vlcore.engines.base import Engine, EngineRequest, EngineStats
from vlcore.engines.external.engine import ExternalEngine
from vlcore.engines.external.prompt import HostPrompt
from vlcore.engines.external.self_test import run_self_test
from vlcore.engines.external.sequence import ExternalSequence
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.transformers.grammars.compiler import GrammarCompiler
from vlcore.engines.vllm.arguments import LOAD_FORMAT, complete
from vlcore.engines.vllm.requests import ENDED, VllmRequest
from vlcore.engines.vllm.support import embedding_name, installed_vllm
from vlcore.engines.vllm.translation import (
    MAX_VALUES,
    check_options,
    to_structured,
    to_vllm,
)
from vlcore.errors import EngineClosedError, EngineUnavailableError, OptionError
from vlcore.prompts.tokenization import TokenizedPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vlcore.language.model import LanguageModel

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # vLLM would report what it runs to its developers
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output belongs to the caller
}
"""Variables that vLLM reads when it is imported, unless they are set."""
_GPU_SHARE = 0.9
"""Share of a GPU's memory that vLLM uses, unless less is free."""
_GPU_SLACK = 0.02
"""Share of a GPU's memory that is left to changes between the measurement and vLLM's start."""
_CPU_SHARE = 0.5
"""Share of the free memory that the keys and values use on a CPU."""
_CPU_SEQUENCES = 16
"""Number of sequences of the maximum length for which there are keys and values on a CPU."""

_SHUTDOWN_S = 30.0
"""Time that vLLM's processes have to end by themselves."""


class VllmEngine(ExternalEngine):
    """Runs the language model of a checkpoint on vLLM.

    Args:
        language_model: the language model.
        tokenizer: decodes the answers.
        view: directory of the language model's text view, which vLLM loads.
        device: the device, unless ``config`` states devices.
        dtype: dtype of the computation, unless ``config`` states one.
        config: vLLM's ``AsyncEngineArgs``, or a mapping of some of its fields.
        self_test: check before the first request that image embeddings have the right effect.

    Raises:
        EngineUnavailableError: vLLM cannot be imported or cannot start, or the self-test failed.
        OptionError: ``config`` has an unknown field, or one that vlcore sets.
    """

    name = "vllm"
    library = VllmRequest.library
    max_values = MAX_VALUES
    supports_grammars = True

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
        arguments = _import_vllm()
        defaults = _defaults(language_model, device, dtype, config)
        completed = _as_arguments(arguments, {} if config is None else config, view, defaults)
        super().__init__(language_model, tokenizer)
        self._grammars = GrammarCompiler(
            tokenizer, self.vocab_size, self._stop_conditions.eos_token_ids
        )
        try:
            self._llm = self._loop.run(_load(completed))
            model_config = self._llm.model_config
            self._dtype = model_config.dtype
            self._limit_context(model_config.max_model_len, language_model)
            self._has_second_runner = bool(self._llm.vllm_config.use_v2_model_runner)
            if self_test:
                self._test(view, language_model.view_config["architectures"][0])
        except BaseException:
            self._free()
            raise

    @property
    def failure(self) -> str | None:
        """Why the engine can serve no further requests, or ``None``."""
        if self._llm is None or not self._llm.errored:
            return None
        return ENDED

    def stats(self) -> EngineStats:
        """Count the answers that vLLM generates, and those whose first token it has not chosen."""
        requests = tuple(self._requests)
        num_running = sum(getattr(request, "has_started", False) for request in requests)
        return EngineStats(num_running, len(requests) - num_running)

    async def prepare(self, config: GenerationConfig) -> None:
        """Check a request's options, and compile its grammar on trial."""
        await super().prepare(config)
        if config.grammar is not None:  # vLLM would compile it without a limit of time
            await self._grammars.compile(config.grammar)

    async def close(self) -> None:
        """Cancel all requests, and free the model."""
        await self._grammars.close()
        await super().close()

    def check(self, request: EngineRequest) -> None:
        """Check a request against the model and against the limits of vLLM."""
        super().check(request)
        if failure := self.failure:
            raise EngineClosedError(failure)
        config = request.config
        end_token_ids = self._stop_conditions.for_request(request).token_ids
        check_options(config, end_token_ids, has_second_runner=self._has_second_runner)
        if self._has_second_runner and config.repetition_penalty != 1 and request.prompt.spans:
            _check_repetition_penalty(request.prompt)

    def _make_request(self, sequence: ExternalSequence, prompt: HostPrompt) -> VllmRequest:
        if sequence.request.config.grammar is not None:  # vLLM ends it with an end token
            sequence.end_token_ids |= self._stop_conditions.eos_token_ids
        return VllmRequest(sequence, prompt, self._llm, self._make_options)

    def _make_options(self, sequence: ExternalSequence) -> Any:
        """Create vLLM's options for the rest of an answer."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        options = to_vllm(sequence.continuation(self.vocab_size))
        if (grammar := sequence.request.config.grammar) is not None:
            options["structured_outputs"] = StructuredOutputsParams(**to_structured(grammar))
        return SamplingParams(**options, output_kind=RequestOutputKind.DELTA)

    def _test(self, view: Path, architecture: str) -> None:
        """Run the self-test, with prompts that are longer than a block of the prefix cache.

        Raises:
            EngineUnavailableError: the self-test failed.
        """
        cache = self._llm.vllm_config.cache_config
        length = 16 + (cache.block_size if cache.enable_prefix_caching else 0)
        test = run_self_test(
            self,
            view,
            embedding_name(architecture),
            _next_logprobs,
            f"vLLM {version}" if (version := _version()) else "vLLM",
            prompt_length=min(length, self.context_length - 1),
            has_prefix_cache=bool(cache.enable_prefix_caching),
        )
        self._run_self_test(test)

    def _free(self) -> None:
        llm, self._llm = getattr(self, "_llm", None), None
        if llm is not None:
            self._loop.call_soon(partial(_shut_down, llm))
        self._loop.close()


def _version() -> str | None:
    installed = installed_vllm()
    return None if installed is None else installed.version


def _import_vllm() -> Any:
    """Import the module of vLLM's arguments.

    Raises:
        EngineUnavailableError: vLLM cannot be imported.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from vllm.engine import arg_utils
    except Exception as error:
        raise EngineUnavailableError(
            f"vLLM {_version()} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return arg_utils


def _as_arguments(arg_utils: Any, config: Any, view: Path, defaults: Mapping[str, Any]) -> Any:
    """Return vLLM's ``AsyncEngineArgs``.

    Raises:
        OptionError: ``config`` has an unknown field, or one that vlcore sets.
    """
    completed = complete(config, view, defaults)
    if not isinstance(completed, Mapping):
        return completed
    try:
        return arg_utils.AsyncEngineArgs(**completed)
    except TypeError as error:
        raise OptionError(
            f"engine_config does not match vLLM's AsyncEngineArgs: {error}"
        ) from error


def _defaults(
    language_model: LanguageModel, device: torch.device, dtype: torch.dtype, config: Any
) -> dict[str, Any]:
    """Return the arguments of vLLM that depend on the model and the machine."""
    defaults: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": language_model.context_length,
        "load_format": LOAD_FORMAT,
        "structured_outputs_config": {"backend": "guidance"},  # that of the embedded engine
        "disable_log_stats": True,
        # The processes of a terminal's group receive Ctrl-C together; vlcore decides when to stop.
        "shutdown_timeout": 60,
    }
    given = config if isinstance(config, Mapping) else {}
    if device.type == "cuda":
        if device.index:
            defaults["device_ids"] = [device.index]
        free, total = torch.cuda.mem_get_info(device)
        defaults["gpu_memory_utilization"] = min(_GPU_SHARE, free / total - _GPU_SLACK)
    elif not os.environ.get("VLLM_CPU_KVCACHE_SPACE") and "gpu_memory_utilization" not in given:
        length = given.get("max_model_len") or language_model.context_length
        needed = _CPU_SEQUENCES * length * _bytes_per_token(language_model, dtype)
        available = int(free_bytes(device) * _CPU_SHARE)
        defaults["kv_cache_memory_bytes"] = min(needed, available)
    return defaults


def _bytes_per_token(language_model: LanguageModel, dtype: torch.dtype) -> int:
    """Return the size of the keys and values of one token."""
    config = language_model.transformers_config
    num_heads = int(config.num_attention_heads)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    return int(2 * config.num_hidden_layers * num_kv_heads * head_size * dtype.itemsize)


def _shut_down(llm: Any) -> None:
    """End vLLM's processes, and close the sockets to them. Called on the event loop."""
    llm.shutdown(timeout=_SHUTDOWN_S)
    llm.engine_core.resources.ctx.destroy(linger=0)  # which vLLM leaves to the garbage collector


async def _load(arguments: Any) -> Any:
    """Start vLLM, on the event loop that it belongs to.

    Raises:
        EngineUnavailableError: vLLM cannot start.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        return AsyncLLM.from_engine_args(arguments)
    except Exception as error:
        cause = error.with_traceback(None)  # a traceback would keep what it allocated alive
    reason = f"{type(cause).__name__}: {cause}"
    raise EngineUnavailableError(
        f"vLLM {_version()} cannot start on {arguments.model}: {reason}. The messages of its "
        "process are in the log; if memory is short, let it use less (gpu_memory_utilization, "
        "max_model_len), or use more devices (tensor_parallel_size)"
    ) from cause


async def _next_logprobs(
    engine: Engine, prompt: TokenizedPrompt, rows: tuple[Tensor, ...]
) -> Tensor:
    """Return the log-probabilities of the token after a prompt.

    Shapes:
        result: [vocab] float32.
    """
    config = GenerationConfig(max_new_tokens=1, ignore_eos=True, logprobs=engine.vocab_size)
    async with aclosing(engine.generate(EngineRequest(prompt, rows, config))) as chunks:
        first = await anext(chunks)
    values = first.logprobs[0]
    return torch.tensor([values[token_id] for token_id in range(engine.vocab_size)])


def _check_repetition_penalty(prompt: TokenizedPrompt) -> None:
    """Check that the tokens that vLLM's second model runner penalizes are those of the text.

    Raises:
        OptionError: token 0, which that runner puts at the positions of image embeddings, is not in
            the text.
    """
    covered = {i for span in prompt.spans for i in range(span.start, span.stop)}
    if any(token_id == 0 for i, token_id in enumerate(prompt.token_ids) if i not in covered):
        return
    raise OptionError(
        "repetition_penalty cannot be used for prompts with images on vLLM's second model runner, "
        "which would also penalize token 0: set VLLM_USE_V2_MODEL_RUNNER=0 before the start, or "
        "use engine='transformers'"
    )

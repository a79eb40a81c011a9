"""Settings of an engine from the options of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from vlcore.engines.transformers.config import TransformersEngineConfig

_VLLM_FIELDS = {
    "max_num_seqs": "max_num_seqs",
    "session_len": "max_model_len",
    "prefix_caching": "enable_prefix_caching",
    "tensor_parallel_size": "tensor_parallel_size",
    "memory_share": "gpu_memory_utilization",
}
"""The fields of vLLM's ``AsyncEngineArgs`` for the options of the command."""


def engine_config(engine: str, **options: Any) -> TransformersEngineConfig | dict[str, Any] | None:
    """The settings of the engine, or None if no option is given.

    Args:
        engine: Name of the engine.
        options: The values of the options by name; None for those that are not given.

    Raises:
        BadParameter: An option belongs to another engine.
    """
    from vlcore.engines.transformers.config import TransformersEngineConfig

    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return None
    allowed = _VLLM_FIELDS if engine == "vllm" else TransformersEngineConfig.__annotations__
    for name in given:
        if name not in allowed:
            required = "--engine transformers" if engine == "vllm" else "--engine vllm"
            raise typer.BadParameter(f"--{name.replace('_', '-')} requires {required}")
    if engine == "vllm":
        return {_VLLM_FIELDS[name]: value for name, value in given.items()}
    return TransformersEngineConfig(**given)

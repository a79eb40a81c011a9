"""``config.json`` of a text view: the simplest equivalent that other programs can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlcore.checkpoint.tensor_source import TensorSource
from vlcore.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_NOT_OF_THE_MODEL = frozenset(
    {
        "_name_or_path",
        "chunk_size_feed_forward",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "transformers_version",
    }
)
_RENAMED_QUANTIZATIONS = ("awq", "gptq")
"""Quantisation methods of which it is known which settings name modules, so that these can be
renamed."""


def standard_config(
    config: PretrainedConfig, architecture: str, *, context_length: int
) -> dict[str, Any]:
    """Convert a configuration to the form in which other programs read it.

    Keys that its class does not define are left out, because a reader could take them for settings,
    and so are references to code.

    Args:
        config: the configuration with all defaults filled in.
        architecture: the class of the model, such as ``"LlamaForCausalLM"``.
        context_length: the longest sequence that the architecture computes correctly, in tokens.
    """
    known = type(config)().to_dict().keys() - _NOT_OF_THE_MODEL
    values = {key: value for key, value in config.to_dict().items() if key in known}
    values |= {"architectures": [architecture], "max_position_embeddings": context_length}
    values = _without_window(values)
    # Programs that predate transformers 5 expect rope_theta at the top level.
    rope = values.get("rope_parameters")
    if isinstance(rope, Mapping) and "rope_theta" in rope:
        values.setdefault("rope_theta", rope["rope_theta"])
    return values


def _without_window(values: dict[str, Any]) -> dict[str, Any]:
    """Change Mistral to Llama if the sliding window is not shorter than the context.

    The window is the only difference between the two, and some engines support only Llama.
    """
    window = values.get("sliding_window")
    is_mistral = values["architectures"] == ["MistralForCausalLM"]
    if not is_mistral or (window is not None and window < values["max_position_embeddings"]):
        return values
    from transformers import LlamaConfig

    known = LlamaConfig().to_dict()
    shared = {key: value for key, value in values.items() if key in known}
    return shared | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def standard_quantization(
    stated: object, tensors: Mapping[str, TensorSource], where: str
) -> dict[str, Any]:
    """Convert a ``quantization_config`` for tensors under their standard names.

    A whole packed tensor can be renamed; a part of one cannot be used.

    Args:
        stated: the ``quantization_config`` of the checkpoint.
        tensors: the source of each tensor, by its standard name.
        where: the description of the file that holds ``stated``, for messages.

    Raises:
        ConfigError: the configuration cannot be converted.
    """
    if not isinstance(stated, Mapping):
        raise ConfigError(f"{where}: quantization_config must be an object; it is {stated!r}")
    method = stated.get("quant_method")
    if cut := [name for name, source in tensors.items() if source.rows is not None]:
        raise ConfigError(
            f"{where}: its weights are quantised ({method}), and a text view would have to cut "
            f"{len(cut)} tensor(s) out of packed ones, {cut[0]} first. Use the checkpoint in half "
            "precision"
        )
    if all(source.name == name for name, source in tensors.items()):
        return dict(stated)
    if method not in _RENAMED_QUANTIZATIONS or stated.get("dynamic"):
        setting = "dynamic" if method in _RENAMED_QUANTIZATIONS else repr(method)
        raise ConfigError(
            f"{where}: its weights are quantised ({method}), and a text view would have to rename "
            f"them, which works for {' and '.join(_RENAMED_QUANTIZATIONS)} but not for {setting}. "
            "Use the checkpoint in half precision"
        )
    result = dict(stated)
    if unconverted := stated.get("modules_to_not_convert"):
        result["modules_to_not_convert"] = sorted(
            {
                name.rpartition(".")[0]
                for name, source in tensors.items()
                if any(module in source.name for module in unconverted)
            }
        )
    return result

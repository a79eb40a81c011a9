"""``config.json`` of a text view: the plainest that computes the same, in every reader's terms."""

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
"""Methods whose every setting that names modules is known, so that it can be renamed."""


def standard_config(
    config: PretrainedConfig, architecture: str, *, context_length: int
) -> dict[str, Any]:
    """Write a configuration as other programs read it.

    What its class does not know is left out: a reader may take it for a setting. So is code.

    Args:
        config: with all defaults filled in.
        architecture: what it configures, such as ``"LlamaForCausalLM"``.
        context_length: the longest sequence that is computed as the checkpoint means it.
    """
    known = type(config)().to_dict().keys() - _NOT_OF_THE_MODEL
    values = {key: value for key, value in config.to_dict().items() if key in known}
    values |= {"architectures": [architecture], "max_position_embeddings": context_length}
    values = _without_window(values)
    # Readers older than transformers 5 look for rope_theta at the top.
    rope = values.get("rope_parameters")
    if isinstance(rope, Mapping) and "rope_theta" in rope:
        values.setdefault("rope_theta", rope["rope_theta"])
    return values


def _without_window(values: dict[str, Any]) -> dict[str, Any]:
    """Call Mistral Llama where no position looks back further than its window reaches.

    Nothing else tells the two apart, and some engines know Llama alone.
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
    """Write a ``quantization_config`` for tensors under their standard names.

    Whole packed tensors keep their meaning under another name; a part of one has none.

    Args:
        stated: the checkpoint's own.
        tensors: the source of each tensor, by its standard name.
        where: what messages call the place of ``stated``.

    Raises:
        ConfigError: it cannot be written soundly.
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
            f"them, which is known of {' and '.join(_RENAMED_QUANTIZATIONS)} and not of {setting}. "
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

"""Qwen-VL's language model: Qwen2 with other tensor names.

Source: ``modeling_qwen.py`` of the Qwen-VL reference implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vl_plugin_qwen import vocabulary
from vlcore import Checkpoint, CheckpointError, ConfigError, LanguageModel, TensorSource, renamed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
_OPTIONAL_SIZES = ("kv_channels", "max_position_embeddings", "seq_length")
_SWITCHES = ("use_dynamic_ntk", "use_logn_attn")
_PREFIXES = {
    "lm_head.": "lm_head.",
    "transformer.wte.": "model.embed_tokens.",
    "transformer.ln_f.": "model.norm.",
    "transformer.h.": "model.layers.",
}
_PARTS = {
    ".ln_1.": ".input_layernorm.",
    ".ln_2.": ".post_attention_layernorm.",
    ".attn.c_proj.": ".self_attn.o_proj.",
    ".mlp.w1.": ".mlp.up_proj.",
    ".mlp.w2.": ".mlp.gate_proj.",
    ".mlp.c_proj.": ".mlp.down_proj.",
}
_JOINED = ".attn.c_attn."


class QwenLanguageModel(LanguageModel):
    """The language model, with the tokenizer of the reference implementation.

    Its context is limited to ``seq_length`` if the reference implementation would scale queries or
    change the rotary base beyond it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorSource],
    ) -> None:
        super().__init__(checkpoint, config, tensors)
        stated = checkpoint.config
        self._seq_length = int(stated.get("seq_length", 2048))
        switches = [switch for switch in _SWITCHES if stated.get(switch, True)]
        if switches and self._seq_length < super().context_length:
            self.context_limit_reason = (
                f"beyond seq_length {self._seq_length} the reference implementation changes its "
                f"attention, by {' and '.join(switches)} of config.json, and Qwen2 does not"
            )

    @property
    def context_length(self) -> int:
        """The maximum length of prompt and completion that equals the reference implementation."""
        own_length = super().context_length
        return self._seq_length if self.context_limit_reason else own_length

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Build the tokenizer from ``qwen.tiktoken``.

        Raises:
            CheckpointNotFoundError: the file is missing.
            CheckpointError: the file is damaged, or belongs to another model.
        """
        path = self.checkpoint.directory / vocabulary.FILENAME
        tokenizer = vocabulary.load_tokenizer(path)
        image_start = tokenizer.convert_tokens_to_ids("<img>")
        expected = self.checkpoint.config["visual"].get("image_start_id", image_start)
        num_embeddings = self.config["vocab_size"]
        if image_start != expected or len(tokenizer) > num_embeddings:
            raise CheckpointError(
                f"{path} does not belong to config.json: with it <img> is token {image_start} of "
                f"{len(tokenizer)}, but config.json has token {expected} of at most "
                f"{num_embeddings}. The download may be incomplete"
            )
        return tokenizer

    def write_tokenizer(self, view: Path) -> None:
        """Save the tokenizer in the standard format."""
        self.tokenizer().save_pretrained(view)
        generation = self.checkpoint.directory / "generation_config.json"
        if generation.is_file():
            (view / generation.name).symlink_to(generation.resolve())


def load_language_model(checkpoint: Checkpoint) -> LanguageModel:
    """Describe the language model of a checkpoint.

    Raises:
        ConfigError: the weights are quantised, a size is missing, or a setting has no equivalent in
            Qwen2.
    """
    config = checkpoint.config
    where = f"config.json of {checkpoint.name}"
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        raise ConfigError(
            f"{where} has a quantization_config: quantised weights ({method or 'unknown method'}) "
            "are not supported, such as those of the Int4 checkpoint. Use the bfloat16 checkpoint"
        )
    stated = (*_SIZES, *(key for key in _OPTIONAL_SIZES if key in config))
    if missing := [key for key in stated if not isinstance(config.get(key), int)]:
        raise ConfigError(f"{where} lacks the integer(s) {', '.join(missing)}")
    if config.get("rotary_pct", 1.0) != 1.0:
        raise ConfigError(
            f"{where}: rotary_pct must be 1.0, as in every published checkpoint; "
            f"it is {config['rotary_pct']!r}"
        )
    head_width = config.get("kv_channels", 128)
    text = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"] // 2,
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_attention_heads"],
        "num_hidden_layers": config["num_hidden_layers"],
        "head_dim": head_width,
        "vocab_size": config["vocab_size"],
        "max_position_embeddings": config.get("max_position_embeddings", 8192),
        "rms_norm_eps": config.get("layer_norm_epsilon", 1e-6),
        "rope_theta": float(config.get("rotary_emb_base", 10000)),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "hidden_act": "silu",
    }
    for key in ("dtype", "torch_dtype"):
        if key in config:
            text[key] = config[key]
    return QwenLanguageModel(
        checkpoint, text, _tensors(checkpoint, head_width * config["num_attention_heads"])
    )


def _tensors(checkpoint: Checkpoint, attention_width: int) -> dict[str, TensorSource]:
    """Rename the tensors to Qwen2's names, and split queries, keys and values."""
    tensors = {}
    for name, source in renamed(checkpoint, _PREFIXES).items():
        if _JOINED in name:
            for number, part in enumerate("qkv"):
                start = number * attention_width
                # The last part takes the rest, so that a wrong width is detected.
                stop = start + attention_width if part != "v" else None
                target = name.replace(_JOINED, f".self_attn.{part}_proj.")
                tensors[target] = TensorSource(source.name, slice(start, stop))
            continue
        old = next((part for part in _PARTS if part in name), None)
        tensors[name.replace(old, _PARTS[old]) if old else name] = source
    return tensors

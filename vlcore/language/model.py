"""``LanguageModel``: the language model of a checkpoint as a standard architecture.

A plugin states the standard architecture of the language model, and where each of its tensors is
stored in the checkpoint: renamed, or cut out of a larger tensor if necessary. From that the core
builds a transformers model, or writes a *text view*: a directory that any engine reads as an
ordinary text model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlcore._utils.device import as_dtype
from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.checkpoint.tensor_source import TensorSource
from vlcore.checkpoint.weights import empty_weights
from vlcore.errors import (
    ConfigError,
    EngineUnavailableError,
)
from vlcore.language.prompt_inputs import USUAL_INPUTS, PromptInputs
from vlcore.language.text_view.config import standard_config, standard_quantization
from vlcore.language.text_view.writer import write_view
from vlcore.language.tied_tensors import add_tied_sources, stores_tied, tie_absent
from vlcore.language.transformers_config import create_config, has_text_class
from vlcore.prompts.tokenization import ImageLayout, TokenizedPrompt

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "generation_config.json",
)


class LanguageModel:
    """The language model of a checkpoint.

    Args:
        checkpoint: the checkpoint that holds it.
        config: ``config.json`` of the standard architecture, as plain JSON with
            ``architectures`` and ``model_type``.
        tensors: the source of each tensor, by its name in checkpoints of the standard architecture:
            where transformers merges the experts of a layer, each expert has a name.

    Raises:
        ConfigError: ``config`` has no ``model_type`` or no ``architectures``.
    """

    requires: frozenset[str] = frozenset()
    """Features that an engine needs in addition to image embeddings: ``"mrope"`` for positions on
    several axes, ``"deepstack"`` for image embeddings that are also added after the first decoder
    layers, and ``"attention_groups"`` for tokens that attend to each other in both directions."""
    context_limit_reason: str = ""
    """Why :attr:`context_length` is shorter than the checkpoint's own, as the rest of a sentence
    that ends in "because …"."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorSource],
    ) -> None:
        self.checkpoint = checkpoint
        self.config = dict(config)
        self.tensors = dict(tensors)
        if not self.config.get("model_type") or not self.config.get("architectures"):
            raise ConfigError(
                f"the language model of {checkpoint.name} needs a model_type and architectures; "
                f"its configuration has {sorted(self.config)}"
            )

    @property
    def architecture(self) -> str:
        """The standard architecture, such as ``"LlamaForCausalLM"``."""
        return str(self.config["architectures"][0])

    @cached_property
    def transformers_config(self) -> PretrainedConfig:
        """The configuration of the standard architecture, with all defaults filled in.

        Raises:
            ConfigError: transformers does not know the ``model_type``, or rejects the values.
        """
        return create_config(self.config, self.checkpoint.name)

    @property
    def hidden_size(self) -> int:
        """The width of an embedding."""
        return int(self.transformers_config.get_text_config().hidden_size)

    @cached_property
    def row_width(self) -> int:
        """The width of an image's embedding as the vision model returns it.

        It differs from :attr:`hidden_size` where :attr:`requires` names ``"deepstack"``: it is
        then ``hidden_size * (1 + layers)``, for the embedding itself, followed by what is added to
        the hidden states after each of the first ``layers`` decoder layers.
        """
        return self.hidden_size

    @property
    def context_length(self) -> int:
        """The maximum length of a prompt and its completion together, in tokens."""
        return int(self.transformers_config.get_text_config().max_position_embeddings)

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that end a completion.

        They are read from ``generation_config.json``, or else from the configuration.

        Raises:
            ConfigError: ``generation_config.json`` states something other than token ids.
        """
        stated = self._stated_eos_ids() or getattr(self.transformers_config, "eos_token_id", None)
        ids = stated if isinstance(stated, list) else [stated]
        return tuple(token_id for token_id in ids if token_id is not None)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        ``config.json`` determines its class if transformers knows the ``model_type`` there, and
        the configuration of the language model otherwise.
        """
        from transformers import CONFIG_MAPPING

        known = self.checkpoint.config.get("model_type") in CONFIG_MAPPING
        return self.checkpoint.tokenizer(None if known else self.transformers_config)

    def prompt_inputs(
        self,
        prompt: TokenizedPrompt,  # noqa: ARG002
        layouts: Sequence[ImageLayout],  # noqa: ARG002
    ) -> PromptInputs:
        """Return what the language model reads of a prompt in addition to its embeddings.

        It is called once for each prompt, in a thread, and must depend on its arguments only.
        ``vlcore.grid_positions``, ``image_groups`` and ``whole_prompt_group`` write the usual
        ones. Other ones than the default need a feature in :attr:`requires`.

        Args:
            prompt: the token ids, and the spans of image embeddings.
            layouts: the number and layout of the embeddings of each image.
        """
        return USUAL_INPUTS

    def build_model(self) -> PreTrainedModel:
        """Build the transformers model without weights.

        By default, it is the ``…ForCausalLM`` of :attr:`transformers_config`, or else its text
        model (``model``) with an output layer (``lm_head``). Override this method where neither
        computes what the model was trained with. It is called inside
        :func:`~vlcore.empty_weights`, and the names of the result's tensors are the keys of
        :attr:`tensors`.

        The result takes ``input_ids`` or ``inputs_embeds``, ``position_ids``, ``attention_mask``,
        ``past_key_values``, ``use_cache`` and ``logits_to_keep``, and with ``"deepstack"`` also
        ``visual_pos_masks`` and ``deepstack_visual_embeds`` as in Qwen3-VL, and returns
        ``logits``. Its attention is "sdpa" or "eager".
        """
        from vlcore.language.causal_lm import build_causal_lm

        return build_causal_lm(self.transformers_config)

    def to_transformers(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str | None = None,
        *,
        progress: bool = False,
    ) -> PreTrainedModel:
        """Build the transformers model, ready for inference.

        Args:
            device: the device of the weights.
            dtype: the dtype of the weights, or its name; ``None`` keeps the stored dtype.
            progress: whether to show a progress bar.

        Raises:
            EngineUnavailableError: the weights are quantised.
            TensorError: tensors are missing, unexpected or misshapen.
        """
        if self._quantization is not None:
            raise EngineUnavailableError(
                f"the language model of {self.checkpoint.name} is quantised "
                f"({_method(self._quantization)}), and the embedded engine runs weights in "
                "floating point only. Use the checkpoint in half precision, or an engine that "
                "reads quantised weights"
            )
        model = self._empty_model()
        self.checkpoint.load_module(
            model,
            add_tied_sources(model, self.tensors),
            device=device,
            dtype=as_dtype(dtype),
            progress=progress,
        )
        tie_absent(model, self.tensors)
        eos_ids = self._stated_eos_ids()
        generation_config = getattr(model, "generation_config", None)
        if eos_ids and generation_config is not None:
            generation_config.eos_token_id = eos_ids
        return model

    def check_tensors(self) -> None:
        """Check that the checkpoint holds the tensors of the architecture, without reading them.

        Quantised weights are not checked, because their tensors are known to their reader only.

        Raises:
            TensorError: tensors are missing, unexpected or misshapen.
        """
        if self._quantization is None:
            model = self._empty_model()
            self.checkpoint.check_module(model, add_tied_sources(model, self.tensors))

    @property
    def _quantization(self) -> object | None:
        """The ``quantization_config`` of the checkpoint; ``None`` if it is not quantised."""
        return self.config.get("quantization_config")

    def _empty_model(self) -> PreTrainedModel:
        text_config = self.transformers_config.get_text_config()
        num_layers = getattr(text_config, "num_hidden_layers", 0)
        if num_layers > len(self.tensors):  # building them would take very long
            raise ConfigError(
                f"config.json of {self.checkpoint.name}: num_hidden_layers is {num_layers}, but "
                f"the language model has only {len(self.tensors)} tensors"
            )
        try:
            with empty_weights():
                model = self.build_model()
        except Exception as error:
            raise ConfigError(
                f"transformers cannot build {self.architecture} from the text configuration of "
                f"{self.checkpoint.name}: {type(error).__name__}: {error}"
            ) from error
        return model

    def _stated_eos_ids(self) -> list[int]:
        """The end tokens in ``generation_config.json``; empty if it has none."""
        stated = (self.checkpoint.read_json("generation_config.json") or {}).get("eos_token_id")
        eos_ids = stated if isinstance(stated, list) else [] if stated is None else [stated]
        if not all(isinstance(token_id, int) for token_id in eos_ids):
            raise ConfigError(
                f"generation_config.json of {self.checkpoint.name}: eos_token_id must be an "
                f"integer or a list of integers; it is {stated!r}"
            )
        return eos_ids

    @property
    def view_config(self) -> dict[str, Any]:
        """``config.json`` of the text view, from which an engine decides if it supports the model.

        It is that of :attr:`architecture`, or of a simpler architecture that computes the same,
        and limits the context to :attr:`context_length`.

        Raises:
            ConfigError: transformers rejects the values or has no text-only class for them, or
                the weights are quantised in a way that a view cannot preserve.
        """
        if not has_text_class(self.transformers_config):
            raise ConfigError(
                f"the language model of {self.checkpoint.name} has no text view, because "
                f"transformers has no text-only class for {self.transformers_config.model_type!r}: "
                "use the embedded engine (engine='transformers')"
            )
        config = standard_config(
            self.transformers_config, self.architecture, context_length=self.context_length
        )
        if config.get("tie_word_embeddings") and stores_tied(
            self.transformers_config, self.tensors
        ):
            config["tie_word_embeddings"] = False  # other programs would ignore one of the two
        if self._quantization is not None:
            config["quantization_config"] = standard_quantization(
                self._quantization, self.tensors, f"config.json of {self.checkpoint.name}"
            )
        return config

    def write_view(self, directory: str | Path, *, progress: bool = False) -> Path:
        """Write the text view: a directory that loads as an ordinary text model.

        It holds a ``config.json`` of the standard architecture, the tokenizer's files, and an
        index that lists the tensors of the language model only. Weight files whose tensors can be
        used unchanged become symbolic links; tensors are copied only if they are renamed, cut, or
        pickled. An existing view of the same files is left as it is.

        Args:
            directory: the directory of the view, which must be empty or absent.
            progress: whether to show a progress bar.

        Raises:
            ConfigError: the checkpoint cannot have a view; see :attr:`view_config`.
            TensorError: tensors are missing, unexpected or misshapen.
            ViewError: the directory holds something else or a damaged view, or cannot be written;
                or there is too little disk space.
        """
        return write_view(self, Path(directory), progress=progress)

    def write_tokenizer(self, view: Path) -> None:
        """Add the tokenizer's files to a text view; by default, links to the checkpoint's files."""
        for filename in _TOKENIZER_FILES:
            file = self.checkpoint.directory / filename
            if file.is_file():
                (view / filename).symlink_to(file.resolve())


def _method(quantization: object) -> str:
    stated = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    return str(stated or "by an unknown method")

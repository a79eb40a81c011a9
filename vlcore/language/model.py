"""``LanguageModel``: the text part of a checkpoint as a standard architecture.

A plugin states which standard architecture the text part is, and where each of its tensors lies
in the checkpoint, renamed or cut out of a larger one where need be. From that the core builds a
transformers model, or writes a *text view*: a directory that any engine reads as an ordinary
text model.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlcore._utils.device import as_dtype
from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.checkpoint.tensor_source import TensorSource
from vlcore.checkpoint.weights import empty_weights
from vlcore.errors import ConfigError, EngineUnavailableError
from vlcore.language.text_view.config import standard_config, standard_quantization
from vlcore.language.text_view.writer import write_view

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
    """The text part of a checkpoint.

    Args:
        checkpoint: where it lies.
        config: ``config.json`` of the standard architecture, as plain JSON with
            ``architectures`` and ``model_type``.
        tensors: the source of each tensor, by its name in the standard architecture.
    """

    requires: frozenset[str] = frozenset()
    """What an engine must offer beyond plain rows, such as ``"mrope"``."""
    context_limit_reason: str = ""
    """Why :attr:`context_length` is shorter than the checkpoint's own; ends "because …"."""

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
                f"the text part of {checkpoint.name} needs a model_type and architectures; "
                f"its configuration has {sorted(self.config)}"
            )

    @property
    def architecture(self) -> str:
        """The standard architecture, such as ``"LlamaForCausalLM"``."""
        return str(self.config["architectures"][0])

    @cached_property
    def transformers_config(self) -> PretrainedConfig:
        """The configuration with all defaults filled in.

        Raises:
            ConfigError: transformers does not know the ``model_type``, or refuses the values.
        """
        from transformers import CONFIG_MAPPING

        values = _with_rope_parameters(self.config)
        del values["model_type"]
        try:
            config: PretrainedConfig = CONFIG_MAPPING[self.config["model_type"]](**values)
        except Exception as error:
            raise ConfigError(
                f"transformers cannot read the text configuration of {self.checkpoint.name} as "
                f"{self.config['model_type']!r}: {type(error).__name__}: {error}"
            ) from error
        return config

    @property
    def hidden_size(self) -> int:
        """Width of an embedding."""
        return int(self.transformers_config.hidden_size)

    @property
    def context_length(self) -> int:
        """The longest sequence of prompt and answer, in tokens."""
        return int(self.transformers_config.max_position_embeddings)

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer, by ``generation_config.json`` or else the configuration.

        Raises:
            ConfigError: ``generation_config.json`` states something else than token ids.
        """
        stated = self._stated_eos_ids() or self.transformers_config.eos_token_id
        ids = stated if isinstance(stated, list) else [stated]
        return tuple(token_id for token_id in ids if token_id is not None)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Of which class it is, ``config.json`` says where transformers knows its ``model_type``, and
        the text part's configuration elsewhere.
        """
        from transformers import CONFIG_MAPPING

        known = self.checkpoint.config.get("model_type") in CONFIG_MAPPING
        return self.checkpoint.tokenizer(None if known else self.transformers_config)

    def to_transformers(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str | None = None,
        *,
        progress: bool = False,
    ) -> PreTrainedModel:
        """Build the transformers model, ready to run.

        Args:
            device: where the weights go.
            dtype: the weights' dtype or its name; ``None`` keeps the stored one.
            progress: show a progress bar.

        Raises:
            EngineUnavailableError: the weights are quantised.
            TensorError: tensors are missing, unexpected or misshapen.
        """
        if self._quantization is not None:
            raise EngineUnavailableError(
                f"the text part of {self.checkpoint.name} is quantised "
                f"({_method(self._quantization)}), and the embedded engine runs weights in "
                "floating point only. Use the checkpoint in half precision, or an engine that "
                "reads quantised weights"
            )
        model = self._empty_model()
        self.checkpoint.load_module(
            model,
            self._with_tied_sources(model),
            device=device,
            dtype=as_dtype(dtype),
            progress=progress,
        )
        model.tie_weights()
        eos_ids = self._stated_eos_ids()
        if eos_ids and model.generation_config is not None:
            model.generation_config.eos_token_id = eos_ids
        return model

    def check_tensors(self) -> None:
        """Make sure that the checkpoint holds what the architecture asks for; none is read.

        Of quantised weights, whose tensors only their reader knows, nothing is expected.

        Raises:
            TensorError: tensors are missing, unexpected or misshapen.
        """
        if self._quantization is None:
            model = self._empty_model()
            self.checkpoint.check_module(model, self._with_tied_sources(model))

    @property
    def _quantization(self) -> object | None:
        """What the checkpoint says of quantised weights, if they are."""
        return self.config.get("quantization_config")

    def _empty_model(self) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM

        config = self.transformers_config
        try:
            with empty_weights():
                model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                    config, attn_implementation="sdpa"
                )
        except Exception as error:
            raise ConfigError(
                f"transformers cannot build {self.architecture} from the text configuration of "
                f"{self.checkpoint.name}: {type(error).__name__}: {error}"
            ) from error
        return model

    def _with_tied_sources(self, model: PreTrainedModel) -> dict[str, TensorSource]:
        """Add the tensors that are others under a second name."""
        sources = dict(self.tensors)
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        for key, original in tied.items():
            if key not in sources and original in sources:
                sources[key] = sources[original]
        return sources

    def _stated_eos_ids(self) -> list[int]:
        """The end tokens that ``generation_config.json`` states, if it does."""
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
        """``config.json`` of the text view, from which an engine tells whether it can run it.

        It is that of :attr:`architecture`, or of a plainer one that computes the same, and ends
        at :attr:`context_length`.

        Raises:
            ConfigError: transformers refuses the values, or the weights are quantised in a way
                that a view cannot keep.
        """
        config = standard_config(
            self.transformers_config, self.architecture, context_length=self.context_length
        )
        if self._quantization is not None:
            config["quantization_config"] = standard_quantization(
                self._quantization, self.tensors, f"config.json of {self.checkpoint.name}"
            )
        return config

    def write_view(self, directory: str | Path, *, progress: bool = False) -> Path:
        """Write the text view: a directory that loads as an ordinary text model.

        It holds a ``config.json`` of the standard architecture, the tokenizer's files, and an
        index that lists the text tensors only. Shards whose tensors fit as they are become
        symbolic links; tensors are copied only where they are renamed, cut, or pickled. A view of
        the same files that is there already is left as it is.

        Args:
            directory: its place, which must be empty or absent.
            progress: show a progress bar.

        Raises:
            ConfigError: the checkpoint has no view; see :attr:`view_config`.
            TensorError: tensors are missing, unexpected or misshapen.
            ViewError: the place is taken, cannot be written, or holds the view damaged; or the
                disk is too small.
        """
        return write_view(self, Path(directory), progress=progress)

    def write_tokenizer(self, view: Path) -> None:
        """Put the tokenizer's files into a text view; by default, links to the checkpoint's."""
        for filename in _TOKENIZER_FILES:
            file = self.checkpoint.directory / filename
            if file.is_file():
                (view / filename).symlink_to(file.resolve())


def _method(quantization: object) -> str:
    stated = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    return str(stated or "by an unknown method")


def _with_rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Write rotary settings the way transformers 5 reads them, without a deprecation warning."""
    values = dict(config)
    scaling = values.pop("rope_scaling", None)
    if not isinstance(scaling, Mapping) or "rope_parameters" in values:
        return values
    parameters = {key: value for key, value in scaling.items() if key != "type"}
    parameters.setdefault("rope_type", scaling.get("type", "default"))
    parameters.setdefault("rope_theta", values.pop("rope_theta", 10000.0))
    return values | {"rope_parameters": parameters}

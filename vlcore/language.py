"""``LanguageModel``: the text part of a checkpoint as a standard architecture.

A plugin states which standard architecture the text part is, and where each of its tensors lies
in the checkpoint, renamed or cut out of a larger one where need be. From that the core builds a
transformers model, or writes a *text view*: a directory that any engine reads as an ordinary
text model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from vlcore.checkpoint import Checkpoint, TensorSource
from vlcore.errors import CheckpointError, ConfigError
from vlcore.placement import as_dtype
from vlcore.weights import empty_weights

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
_COMPUTED_SUFFIX = ".rotary_emb.inv_freq"
_SHARD_BYTES = 2 * 1024**3


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
            TensorError: tensors are missing, unexpected or misshapen.
        """
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
        sources = dict(self.tensors)
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        for key, original in tied.items():
            if key not in sources and original in sources:
                sources[key] = sources[original]
        self.checkpoint.load_module(
            model, sources, device=device, dtype=as_dtype(dtype), progress=progress
        )
        cast("nn.Module", model).to(device)  # the buffers, such as rotary frequencies
        model.tie_weights()
        eos_ids = self._stated_eos_ids()
        if eos_ids and model.generation_config is not None:
            model.generation_config.eos_token_id = eos_ids
        model.train(False)
        return model

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

    def write_view(self, directory: str | Path) -> Path:
        """Write the text view: a directory that loads as an ordinary text model.

        It holds a ``config.json`` of the standard architecture, the tokenizer's files, and an
        index that lists the text tensors only. Shards whose tensors fit as they are become
        symbolic links; tensors are copied only where they are renamed, cut, or pickled.

        Raises:
            CheckpointError: the directory exists and is not empty, or is a file.
        """
        view = Path(directory)
        if view.exists() and not view.is_dir():
            raise CheckpointError(f"a text view needs a directory; {view} is a file")
        view.mkdir(parents=True, exist_ok=True)
        if any(view.iterdir()):
            raise CheckpointError(f"a text view needs an empty directory; {view} is not empty")
        self._write_json(view / "config.json", self._view_config())
        self.write_tokenizer(view)

        linked: dict[Path, str] = {}
        weight_map: dict[str, str] = {}
        to_copy: dict[str, TensorSource] = {}
        stored = set(self.checkpoint.tensor_names)
        changed = {name for name, source in self.tensors.items() if source != TensorSource(name)}
        # Some readers take all that a shard holds, and would take these under a name of ours.
        unfit = {self.checkpoint.file_of(name) for name in changed & stored}
        for target, source in self.tensors.items():
            path = self.checkpoint.file_of(source.name)
            if target not in changed and path not in unfit and path.suffix == ".safetensors":
                link = f"linked-{len(linked) + 1:05}.safetensors"
                weight_map[target] = linked.setdefault(path, link)
            else:
                to_copy[target] = source
        self.checkpoint.fetch_files(linked)
        for path, filename in linked.items():
            (view / filename).symlink_to(path.resolve())
        for number, shard in enumerate(self._copied_shards(to_copy), start=1):
            filename = f"copied-{number:05}.safetensors"
            _save(shard, view / filename)
            weight_map.update(dict.fromkeys(shard, filename))
        self._write_json(
            view / "model.safetensors.index.json",
            {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))},
        )
        return view

    def write_tokenizer(self, view: Path) -> None:
        """Put the tokenizer's files into a text view; by default, links to the checkpoint's."""
        for filename in _TOKENIZER_FILES:
            file = self.checkpoint.directory / filename
            if file.is_file():
                (view / filename).symlink_to(file.resolve())

    def _view_config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.transformers_config.to_dict()
        # Readers older than transformers 5 look for rope_theta at the top.
        rope = config.get("rope_parameters")
        if isinstance(rope, Mapping) and "rope_theta" in rope:
            config.setdefault("rope_theta", rope["rope_theta"])
        config["architectures"] = [self.architecture]
        config["model_type"] = self.config["model_type"]
        return config

    def _copied_shards(self, sources: Mapping[str, TensorSource]) -> Iterator[dict[str, Tensor]]:
        targets: dict[str, list[str]] = {}
        for target, source in sources.items():
            targets.setdefault(source.name, []).append(target)
        shard: dict[str, Tensor] = {}
        for name, tensor in self.checkpoint.tensors(targets):
            for target in targets[name]:
                shard[target] = sources[target].take(tensor)
            if sum(value.nbytes for value in shard.values()) >= _SHARD_BYTES:
                yield shard
                shard = {}
        if shard:
            yield shard

    @staticmethod
    def _write_json(path: Path, value: Mapping[str, Any]) -> None:
        path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


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


def renamed(checkpoint: Checkpoint, prefixes: Mapping[str, str]) -> dict[str, TensorSource]:
    """List the tensors whose names begin with a prefix, under new names.

    Rotary frequencies, which old checkpoints store and every model computes, are left out.

    Args:
        checkpoint: where they lie.
        prefixes: the standard architecture's prefix for each prefix of the checkpoint; the first
            one that fits a name is taken.
    """
    tensors = {}
    for name in checkpoint.tensor_names:
        old = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if old is not None and not name.endswith(_COMPUTED_SUFFIX):
            tensors[prefixes[old] + name.removeprefix(old)] = TensorSource(name)
    return tensors


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, {"format": "pt"})

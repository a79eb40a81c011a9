"""A checkpoint: its configuration as plain JSON, its tokenizer, its tensors by name.

A checkpoint is a directory or a repository of the Hugging Face hub. Which model it holds is not
known here: ``config.json`` is read as JSON and never handed to a class that might misread it.
Only the tensors asked for are read from disk, straight to their dtype and device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlcore._utils.device_map import device_of
from vlcore._utils.progress import progress_bar
from vlcore.checkpoint.files import METADATA_PATTERNS, CheckpointFiles, path_inside
from vlcore.checkpoint.tensor_source import TensorSource
from vlcore.checkpoint.weights import TensorInfo, move_buffers, open_weights, read_header
from vlcore.errors import CheckpointNotFoundError, ConfigError, TensorError
from vlcore.vocabulary import load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_MAX_NAMES_IN_MESSAGE = 20


class Checkpoint:
    """A model directory, or a hub repository whose files are fetched as they are needed.

    Args:
        directory: where the files lie.
        name: what messages call the checkpoint.
        fetch: called with file names that are about to be read; hub checkpoints download here.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str | None = None,
        fetch: Callable[[Sequence[str]], object] | None = None,
    ) -> None:
        self.directory = directory
        self.name = name or str(directory)
        self._fetch = fetch

    @classmethod
    def open(cls, model: str | Path, *, revision: str | None = None) -> Checkpoint:
        """Open a directory, or else a hub id such as ``"organisation/name"``.

        Of a hub repository, only the small files are fetched now. Code is never fetched.

        Raises:
            CheckpointNotFoundError: neither a directory nor a reachable hub repository.
        """
        if not isinstance(model, str | Path) or not str(model):
            raise CheckpointNotFoundError(
                f"a model directory or hub id is expected; {model!r} is neither"
            )
        hub_id = str(model)
        try:
            directory = Path(model).expanduser()
            if directory.is_dir():
                return cls(directory)
            is_file = directory.exists()
        except (OSError, ValueError, RuntimeError) as error:  # no possible path
            raise CheckpointNotFoundError(f"{hub_id[:80]!r} is no directory: {error}") from error
        if is_file:
            raise CheckpointNotFoundError(
                f"a model directory or hub id is expected; {hub_id!r} is a file"
            )
        if hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~")):
            raise CheckpointNotFoundError(
                f"there is no directory {hub_id!r}, and it is no hub id (organisation/name) either"
            )
        return cls._open_hub(hub_id, revision)

    @classmethod
    def _open_hub(cls, hub_id: str, revision: str | None) -> Checkpoint:
        from huggingface_hub import snapshot_download

        def download(patterns: Sequence[str]) -> Path:
            try:
                return Path(
                    snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns))
                )
            except Exception as error:  # the hub client raises many unrelated types
                raise CheckpointNotFoundError(
                    f"there is no directory {hub_id!r}, and {', '.join(patterns)} of the hub "
                    f"repository {hub_id!r} (revision {revision or 'main'}) could not be fetched: "
                    f"{type(error).__name__}: {error}. Check the name and the network, or "
                    "download the repository and pass its directory"
                ) from error

        directory = download(METADATA_PATTERNS)
        return cls(directory, name=hub_id, fetch=download)

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r})"

    @property
    def is_remote(self) -> bool:
        """Whether files are fetched as they are needed."""
        return self._fetch is not None

    @property
    def origin(self) -> str:
        """The hub id, or the whole path of a directory."""
        return str(self.directory.resolve()) if self._fetch is None else self.name

    # -- JSON and other small files

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """``config.json`` as plain JSON.

        Raises:
            ConfigError: it is absent or not a JSON object.
        """
        config = self.read_json("config.json")
        if config is None:
            raise ConfigError(
                f"{self.name} has no config.json: is it a checkpoint in the Hugging Face layout? "
                f"It holds {_shorten(sorted(path.name for path in self.directory.iterdir()))}"
            )
        return config

    @cached_property
    def files(self) -> CheckpointFiles:
        """The metadata files, such as ``config.json``, in every folder of the checkpoint."""
        return CheckpointFiles(self.directory)

    def read_json(self, filename: str) -> dict[str, Any] | None:
        """Read a JSON object, or ``None`` where there is no such file.

        Raises:
            ConfigError: the file is not a JSON object.
        """
        return self.files.read_json(filename)

    @property
    def metadata_files(self) -> tuple[Path, ...]:
        """The small files beside the weights, such as the tokenizer's, sorted."""
        found = {path for pattern in METADATA_PATTERNS for path in self.directory.glob(pattern)}
        return tuple(sorted(path for path in found if path.is_file()))

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the chat template that the checkpoint ships, if any."""
        path = self.directory / "chat_template.jinja"
        if path.is_file():
            return path.read_text("utf-8")
        for filename in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            template = (self.read_json(filename) or {}).get("chat_template")
            if isinstance(template, str):
                return template
        return None

    @property
    def special_tokens(self) -> dict[str, str]:
        """Texts of the tokenizer's special tokens by role, such as ``eos_token``."""
        tokens: dict[str, str] = {}
        for filename in ("tokenizer_config.json", "special_tokens_map.json"):
            for role, token in (self.read_json(filename) or {}).items():
                text = token.get("content") if isinstance(token, dict) else token
                if role.endswith("_token") and isinstance(text, str):
                    tokens[role] = text
        return tokens

    def related(self, reference: str) -> Checkpoint:
        """Open a checkpoint that this one names.

        Args:
            reference: a folder of this checkpoint, with slashes of either kind; or else a Hub repo
                id, or the whole path of a directory.

        Raises:
            CheckpointNotFoundError: it is none of these, or leads out of this checkpoint by
                ``..``.
        """
        try:
            inside = path_inside(self.directory, reference)
            if inside is not None and inside.is_dir():
                return self._inner(inside)
            if inside is None and not PureWindowsPath(reference).anchor:
                raise CheckpointNotFoundError("it leads out of the checkpoint by '..'")
            return Checkpoint.open(reference)
        except (OSError, ValueError, CheckpointNotFoundError) as error:
            raise CheckpointNotFoundError(
                f"{self.name} refers to {reference[:80]!r}, which is no directory inside it: "
                f"{error}"
            ) from error

    def _inner(self, directory: Path) -> Checkpoint:
        """Open a directory; in a hub repository, its files come from the folder of that name."""
        fetch = self._fetch
        if fetch is None or not directory.is_relative_to(self.directory):
            return Checkpoint(directory)
        folder = directory.relative_to(self.directory)
        return Checkpoint(
            directory,
            name=f"{self.name}/{folder.as_posix()}",
            fetch=lambda names: fetch([(folder / name).as_posix() for name in names]),
        )

    def tokenizer(self, config: PretrainedConfig | None = None) -> PreTrainedTokenizerBase:
        """Load the tokenizer, without remote code.

        Args:
            config: of the text part, which says the tokenizer's class where the tokenizer's own
                files do not. Without it ``config.json`` does, and its ``model_type`` may mislead.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        return load_tokenizer(self.directory, config)

    @cached_property
    def fingerprint(self) -> str:
        """A digest that changes with the checkpoint: place, files' sizes and times, headers.

        Weights are never hashed.
        """
        return self.fingerprint_of(self._weight_files.values())

    def fingerprint_of(self, weight_files: Iterable[Path]) -> str:
        """Digest the place, ``config.json`` and some of the weight files alone."""
        digest = hashlib.sha256()
        files = [self.directory / "config.json", *sorted(set(weight_files))]
        for field in (str(self.directory.resolve()), *self._fingerprint_fields(files)):
            encoded = field.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()

    @staticmethod
    def _fingerprint_fields(files: Iterable[Path]) -> Iterator[str]:
        for path in files:
            if not path.exists():
                continue
            status = path.stat()
            yield from (path.name, str(status.st_size), str(status.st_mtime_ns))
            if path.suffix == ".safetensors":
                yield read_header(path).decode("utf-8", "replace")

    # -- tensors

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Every tensor's name, sorted."""
        return tuple(sorted(self._weight_files))

    def has_tensors(self, prefix: str) -> bool:
        """Whether any tensor's name begins with ``prefix``."""
        return any(name.startswith(prefix) for name in self._weight_files)

    def file_of(self, name: str) -> Path:
        """The weight file that holds a tensor.

        Raises:
            TensorError: no file does.
        """
        try:
            return self._weight_files[name]
        except KeyError:
            raise TensorError(
                f"tensor {name!r} is missing from {self.name}, which has "
                f"{len(self._weight_files)} tensors"
            ) from None

    def tensors(
        self,
        names: Iterable[str],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        progress: bool = False,
    ) -> Iterator[tuple[str, Tensor]]:
        """Read tensors one at a time, file by file; nothing else is read from disk.

        Args:
            names: which ones.
            device: where they go.
            dtype: what floating tensors are converted to; ``None`` keeps the stored dtype.
            progress: show a progress bar.

        Raises:
            TensorError: names are missing, or a file is damaged.
        """
        by_file = self._files_with(names)
        total = sum(map(len, by_file.values()))

        def place(tensor: Tensor) -> Tensor:
            keeps = dtype is None or not tensor.is_floating_point()
            return tensor.to(device=device, dtype=None if keeps else dtype)

        with progress_bar(
            total, description="loading weights", unit="tensor", shown=progress
        ) as advance:
            for path, names_in_file in by_file.items():
                with open_weights(path) as read:
                    for name in read.in_file_order(names_in_file):
                        yield name, place(read(name))  # kept by nobody but who asked
                        advance()

    def tensor_infos(self, names: Iterable[str]) -> dict[str, TensorInfo]:
        """Tell dtypes and shapes, in the order that :meth:`tensors` reads the tensors in.

        Raises:
            TensorError: names are missing, or a file is damaged.
        """
        infos: dict[str, TensorInfo] = {}
        for path, names_in_file in self._files_with(names).items():
            with open_weights(path) as read:
                infos |= {n: read.describe(n) for n in read.in_file_order(names_in_file)}
        return infos

    def _files_with(self, names: Iterable[str]) -> dict[Path, list[str]]:
        """Give the names that lie in each file, all of which are then there."""
        wanted = list(dict.fromkeys(names))
        if missing := [name for name in wanted if name not in self._weight_files]:
            raise TensorError(f"{self.name} lacks {len(missing)} tensor(s): {_shorten(missing)}")
        by_file: dict[Path, list[str]] = {}
        for name in wanted:
            by_file.setdefault(self._weight_files[name], []).append(name)
        self.fetch_files(by_file)
        return by_file

    def fetch_files(self, paths: Iterable[Path]) -> None:
        """Make sure that weight files are there; those of a hub checkpoint are fetched now.

        Raises:
            CheckpointNotFoundError: they cannot be fetched.
        """
        if self._fetch is not None:
            self._fetch([path.name for path in paths])

    def load_module(
        self,
        module: nn.Module,
        sources: Mapping[str, TensorSource],
        *,
        device: torch.device | str | Mapping[str, int | str | torch.device] = "cpu",
        dtype: torch.dtype | None = None,
        progress: bool = False,
    ) -> None:
        """Fill a module with tensors of the checkpoint, and make it ready for inference.

        Afterwards every parameter and buffer is on ``device``, no parameter needs a gradient, and
        the module is in evaluation mode. Buffers that the checkpoint does not hold (those with
        ``persistent=False``, such as position ids and rotary frequencies) keep the values and the
        dtype that the module computed for them.

        Args:
            module: the module to fill, best built inside :func:`~vlcore.empty_weights`; its
                parameters are replaced.
            sources: where the tensor of each key of ``module.state_dict()`` is stored.
            device: the device of all parameters and buffers, or of each part by the part's name.
            dtype: what floating tensors of the checkpoint are converted to; ``None`` keeps the
                stored dtype.
            progress: show a progress bar.

        Raises:
            TensorError: keys without a source, sources without a key, missing tensors or wrong
                shapes; each is listed. Or a buffer without values.
        """
        self.check_module(module, sources)
        keys_of: dict[str, list[str]] = {}
        for key, source in sources.items():
            keys_of.setdefault(source.name, []).append(key)
        plan = device if isinstance(device, Mapping) else {"": device}
        buffers = module.named_buffers(remove_duplicate=False)
        computed = [name for name, _ in buffers if name not in sources]
        move_buffers(module, computed, partial(device_of, plan))
        read_to = "cpu" if isinstance(device, Mapping) else device
        state: dict[str, Tensor] = {}
        for name, tensor in self.tensors(keys_of, device=read_to, dtype=dtype, progress=progress):
            for key in keys_of[name]:
                state[key] = sources[key].take(tensor).to(device_of(plan, key))
        module.load_state_dict(state, assign=True)
        module.requires_grad_(False).eval()

    def check_module(self, module: nn.Module, sources: Mapping[str, TensorSource]) -> None:
        """Make sure that a module can be filled; no tensor is read.

        Args:
            module: what would be filled.
            sources: where the tensor of each key of ``module.state_dict()`` lies.

        Raises:
            TensorError: keys without a source, sources without a key, missing tensors or wrong
                shapes; each is listed.
        """
        expected = {key: value.shape for key, value in module.state_dict().items()}
        if missing := sorted(expected.keys() - sources.keys()):
            raise TensorError(
                f"{self.name} lacks {len(missing)} tensor(s) that config.json asks for: "
                f"{_shorten(missing)}"
            )
        if unexpected := sorted(sources[key].name for key in sources.keys() - expected.keys()):
            raise TensorError(
                f"{self.name} holds {len(unexpected)} tensor(s) that the model of config.json has "
                f"no place for: {_shorten(unexpected)}"
            )
        infos = self.tensor_infos(source.name for source in sources.values())
        shapes = {key: source.describe(infos[source.name]).shape for key, source in sources.items()}
        if misshapen := [
            f"{source.name} gives {list(shapes[key])} where config.json asks for "
            f"{list(expected[key])}"
            for key, source in sources.items()
            if shapes[key] != expected[key]
        ]:
            raise TensorError(f"wrong shapes in {self.name}: {_shorten(misshapen)}")

    @cached_property
    def _weight_files(self) -> Mapping[str, Path]:
        """The file of each tensor."""
        for filename in ("model.safetensors", "pytorch_model.bin"):
            if (index := self.read_json(f"{filename}.index.json")) is not None:
                return self._shards_of(index, f"{filename}.index.json")
            path = self.directory / filename
            if not path.exists() and self._fetch is not None:
                self._fetch([filename])
            if path.exists():
                with open_weights(path) as read:
                    return dict.fromkeys(read.names, path)
        raise TensorError(
            f"{self.name} holds no weights: expected model.safetensors, pytorch_model.bin or the "
            "index of one (*.index.json)"
        )

    def _shards_of(self, index: Mapping[str, Any], index_name: str) -> dict[str, Path]:
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(file, str) for file in weight_map.values()
        ):
            raise ConfigError(
                f"{self.directory / index_name} has no weight_map object that gives the file of "
                "each tensor"
            )
        return {name: self.directory / Path(file).name for name, file in weight_map.items()}


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMES_IN_MESSAGE])
    more = len(names) - _MAX_NAMES_IN_MESSAGE
    return f"{shown} and {more} more" if more > 0 else shown


_COMPUTED_SUFFIX = ".rotary_emb.inv_freq"


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

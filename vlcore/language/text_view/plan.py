"""The plan of a text view: the weight files to link, and the tensors to copy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.checkpoint.safetensors_writer import SafetensorsWriter
from vlcore.checkpoint.tensor_source import TensorSource
from vlcore.checkpoint.weights import TensorInfo
from vlcore.language.text_view.manifest import FORMAT

_SHARD_BYTES = 2 * 1024**3


class LanguageModelSource(Protocol):
    """A language model of which a view can be written."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that holds it."""

    @property
    def tensors(self) -> Mapping[str, TensorSource]:
        """The source of each tensor, by its name in the standard architecture."""

    @property
    def view_config(self) -> Mapping[str, Any]:
        """``config.json`` of the view."""

    @property
    def context_limit_reason(self) -> str:
        """Why its context is shorter than the checkpoint's own; empty if it is not."""

    def write_tokenizer(self, view: Path) -> None:
        """Add the tokenizer's files to the view."""

    def check_tensors(self) -> None:
        """Check that the checkpoint holds the tensors of the architecture."""


@dataclass(frozen=True)
class Shard:
    """A weight file of copied tensors."""

    filename: str
    sources: Mapping[str, TensorSource]
    file: SafetensorsWriter


class ViewPlan:
    """The weight files of a view, and the key that identifies its content.

    Files whose tensors can be used unchanged become links. Tensors are copied only if they are
    renamed, cut, or pickled.

    Args:
        model: the language model of which a view is to be written.
    """

    def __init__(self, model: LanguageModelSource) -> None:
        self.model = model
        self._linked: dict[str, str] = {}
        """The link for each tensor that is used unchanged."""
        self._copied: dict[str, TensorSource] = {}
        checkpoint, tensors = model.checkpoint, model.tensors
        self._files = {checkpoint.file_of(source.name) for source in tensors.values()}
        stored = set(checkpoint.tensor_names)
        changed = {name for name, source in tensors.items() if source != TensorSource(name)}
        # Some programs read every tensor of a file, and would take these for the renamed ones.
        ambiguous = {checkpoint.file_of(name) for name in changed & stored}
        links: dict[Path, str] = {}
        for name, source in tensors.items():
            path = checkpoint.file_of(source.name)
            if name in changed or path in ambiguous or path.suffix != ".safetensors":
                self._copied[name] = source
            else:
                link = links.setdefault(path, f"linked-{len(links) + 1:05}.safetensors")
                self._linked[name] = link
        self.links = {link: path for path, link in links.items()}
        """The target of each link."""

    @cached_property
    def key(self) -> str:
        """A digest that changes with the view's content.

        Weights are identified by size and modification time; those of a Hub repository are
        downloaded first.
        """
        checkpoint, tensors = self.model.checkpoint, self.model.tensors
        checkpoint.fetch_files(self._files)
        metadata = [(path, path.stat()) for path in checkpoint.metadata_files]
        inputs = (
            FORMAT,
            checkpoint.fingerprint_of(self._files),
            self.model.view_config,
            sorted((name, source.name, str(source.rows)) for name, source in tensors.items()),
            [(path.name, status.st_size, status.st_mtime_ns) for path, status in metadata],
        )
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """The files of copied tensors, of about two gigabytes each; no tensor is read for this."""
        sources = self._copied
        targets: dict[str, list[str]] = {}
        for name, source in sources.items():
            targets.setdefault(source.name, []).append(name)
        infos = self.model.checkpoint.tensor_infos(targets)
        contents: list[dict[str, TensorInfo]] = [{}]
        for stored, info in infos.items():
            if sum(tensor.num_bytes for tensor in contents[-1].values()) >= _SHARD_BYTES:
                contents.append({})
            # The parts of a stored tensor stay together, so that it is read only once.
            contents[-1] |= {name: sources[name].describe(info) for name in targets[stored]}
        return tuple(
            Shard(
                f"copied-{number:05}.safetensors",
                {name: sources[name] for name in tensors},
                SafetensorsWriter(tensors),
            )
            for number, tensors in enumerate(filter(None, contents), start=1)
        )

    @property
    def weight_map(self) -> dict[str, str]:
        """The name of the file of each tensor."""
        copied = {name: shard.filename for shard in self.shards for name in shard.sources}
        return dict(sorted((self._linked | copied).items()))

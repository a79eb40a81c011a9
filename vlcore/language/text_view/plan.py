"""What a text view is made of: the weight files it links, and the tensors it writes anew."""

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
    """A text part of which a view can be made."""

    @property
    def checkpoint(self) -> Checkpoint:
        """Where it lies."""

    @property
    def tensors(self) -> Mapping[str, TensorSource]:
        """The source of each tensor, by its name in the standard architecture."""

    @property
    def view_config(self) -> Mapping[str, Any]:
        """``config.json`` of the view."""

    @property
    def context_limit_reason(self) -> str:
        """Why its context is shorter than the checkpoint's own."""

    def write_tokenizer(self, view: Path) -> None:
        """Put the tokenizer's files into the view."""

    def check_tensors(self) -> None:
        """Make sure that the checkpoint holds what the architecture asks for."""


@dataclass(frozen=True)
class Shard:
    """A weight file that is written anew."""

    filename: str
    sources: Mapping[str, TensorSource]
    file: SafetensorsWriter


class ViewPlan:
    """The weight files of a view, and the key of all that decides on its content.

    Files whose tensors fit as they are become links. Tensors are written anew only where they are
    renamed, cut, or pickled.
    """

    def __init__(self, part: LanguageModelSource) -> None:
        self.part = part
        self._linked: dict[str, str] = {}
        """The link that holds each tensor which fits."""
        self._rewritten: dict[str, TensorSource] = {}
        checkpoint, tensors = part.checkpoint, part.tensors
        self._files = {checkpoint.file_of(source.name) for source in tensors.values()}
        stored = set(checkpoint.tensor_names)
        changed = {name for name, source in tensors.items() if source != TensorSource(name)}
        # Some readers take all that a file holds, and would take these under a name of ours.
        unfit = {checkpoint.file_of(name) for name in changed & stored}
        links: dict[Path, str] = {}
        for name, source in tensors.items():
            path = checkpoint.file_of(source.name)
            if name in changed or path in unfit or path.suffix != ".safetensors":
                self._rewritten[name] = source
            else:
                link = links.setdefault(path, f"linked-{len(links) + 1:05}.safetensors")
                self._linked[name] = link
        self.links = {link: path for path, link in links.items()}
        """The weight file that each link leads to."""

    @cached_property
    def key(self) -> str:
        """A digest that changes with the view's content; weights are told by size and time.

        The files of a hub checkpoint are fetched for it.
        """
        checkpoint, tensors = self.part.checkpoint, self.part.tensors
        checkpoint.fetch_files(self._files)
        metadata = [(path, path.stat()) for path in checkpoint.metadata_files]
        decisive = (
            FORMAT,
            checkpoint.fingerprint_of(self._files),
            self.part.view_config,
            sorted((name, source.name, str(source.rows)) for name, source in tensors.items()),
            [(path.name, status.st_size, status.st_mtime_ns) for path, status in metadata],
        )
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """The files that are written anew, each of some gigabytes; no tensor is read for it."""
        sources = self._rewritten
        targets: dict[str, list[str]] = {}
        for name, source in sources.items():
            targets.setdefault(source.name, []).append(name)
        infos = self.part.checkpoint.tensor_infos(targets)
        filled: list[dict[str, TensorInfo]] = [{}]
        for stored, info in infos.items():
            if sum(tensor.num_bytes for tensor in filled[-1].values()) >= _SHARD_BYTES:
                filled.append({})
            # The parts of one stored tensor stay together, so that it is read once.
            filled[-1] |= {name: sources[name].describe(info) for name in targets[stored]}
        return tuple(
            Shard(
                f"copied-{number:05}.safetensors",
                {name: sources[name] for name in tensors},
                SafetensorsWriter(tensors),
            )
            for number, tensors in enumerate(filter(None, filled), start=1)
        )

    @property
    def weight_map(self) -> dict[str, str]:
        """The file of each tensor."""
        copied = {name: shard.filename for shard in self.shards for name in shard.sources}
        return dict(sorted((self._linked | copied).items()))

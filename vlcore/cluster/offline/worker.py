"""``GroupEncoder``: encodes groups of image files, and writes each group as one shard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch

from vlcore._utils.event_loop import LoopThread
from vlcore.cluster.offline.settings import EncoderSettings
from vlcore.cluster.offline.shards import ImageEmbeddings, ShardDirectory
from vlcore.cluster.offline.sources import LOCAL, read_source
from vlcore.errors import VlcoreError
from vlcore.vision.embedding_cache import file_key

logger = logging.getLogger(__name__)

_MAX_FILES_IN_MEMORY = 64


@dataclass(frozen=True)
class Outcome:
    """What became of an image file."""

    name: str
    key: str = ""
    """Key of the image's content, unless it could not be read."""
    shard: str = ""
    """The shard that the embeddings were written to; empty if they existed before."""
    error: str = ""
    """Why there are no embeddings; empty if there are."""
    fatal: str = ""
    """Why the job ends without the other images; empty if it does not."""


class GroupEncoder:
    """Encodes groups of image files. Ray Data creates one in each of its processes.

    Args:
        settings: the model and its options.
        directory: where the shards are written.
        filesystems: the filesystems of pyarrow that images are read from.
        num_threads: number of threads that torch computes with.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        directory: ShardDirectory,
        filesystems: Sequence[Any],
        num_threads: int,
    ) -> None:
        torch.set_num_threads(num_threads)
        self._directory = directory
        self._filesystems = filesystems
        self._encoder = settings.encoder(settings.vision_model())
        model = self._encoder.vision_model
        self._key_of = partial(
            file_key,
            options=model.request_options(num_images=1),
            model=model,
            shrink_on_load=self._encoder.shrink_on_load,
            background=self._encoder.image_background,
        )
        self._loop = LoopThread("vlcore-offline")
        self._in_memory = asyncio.Semaphore(_MAX_FILES_IN_MEMORY)

    def __call__(self, group: Any) -> Any:
        """Encode a group, and return the outcomes of its images.

        Several groups may be encoded at the same time, from several threads: they share batches.

        Args:
            group: a ``pyarrow.Table`` of the columns of ``SourceFile``, and ``known_keys``: the
                keys of embeddings of that name that exist already.
        """
        return as_table(self.encode(group.to_pylist()))

    def encode(self, group: Sequence[dict[str, Any]]) -> list[Outcome]:
        """Encode a group and write its shard; see :meth:`__call__`."""
        try:
            encoded = self._loop.run(self._encode_all(group))
            images = [item for item in encoded if isinstance(item, ImageEmbeddings)]
            shard = self._directory.write(images) if images else ""
        except VlcoreError as error:
            return [Outcome(str(group[0]["name"]), fatal=_as_valid_text(str(error)))]
        except Exception as error:
            logger.exception("a group of images could not be encoded")
            text = _as_valid_text(f"{type(error).__name__}: {error}")
            return [Outcome(str(group[0]["name"]), fatal=text)]
        return [
            Outcome(item.name, item.key, shard) if isinstance(item, ImageEmbeddings) else item
            for item in encoded
        ]

    async def _encode_all(self, group: Sequence[dict[str, Any]]) -> list[ImageEmbeddings | Outcome]:
        return list(await asyncio.gather(*(self._encode(**image) for image in group)))

    async def _encode(
        self, name: str, path: str, filesystem: int, known_keys: Sequence[str]
    ) -> ImageEmbeddings | Outcome:
        chosen = None if filesystem == LOCAL else self._filesystems[filesystem]
        async with self._in_memory:
            try:
                data = await asyncio.to_thread(read_source, path, chosen)
                key = await asyncio.to_thread(self._key_of, data)
                if key in known_keys:
                    return Outcome(name, key)
                (image,) = await self._encoder.encode([data])
            except VlcoreError as error:
                return Outcome(name, error=_as_valid_text(str(error)))
        # A copy: images of equal content share their rows, and a shard has those of each.
        return ImageEmbeddings(name, key, image.rows.to("cpu", copy=True))


def as_table(outcomes: Sequence[Outcome]) -> Any:
    """Return outcomes as a ``pyarrow.Table``."""
    import pyarrow

    schema = pyarrow.schema([(one.name, pyarrow.string()) for one in fields(Outcome)])
    return pyarrow.Table.from_pylist([asdict(outcome) for outcome in outcomes], schema)


def _as_valid_text(message: str) -> str:
    """Escape lone surrogates, which a message may quote and Arrow cannot store."""
    return message.encode("utf-8", "backslashreplace").decode()

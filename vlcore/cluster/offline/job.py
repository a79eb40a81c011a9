"""``EncodingJob``: encodes image files on a cluster with Ray Data, in groups that become shards.

A group whose process dies, because a file crashes a decoder or memory runs out, is tried again in
smaller groups, until the image that is at fault is alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from vlcore.cluster.offline.ray_data import DeathLog, ray_data_settings
from vlcore.cluster.offline.resources import Replicas
from vlcore.cluster.offline.settings import EncoderSettings
from vlcore.cluster.offline.shards import ShardDirectory
from vlcore.cluster.offline.sources import SourceFile, Sources
from vlcore.cluster.offline.worker import GroupEncoder, Outcome
from vlcore.errors import EngineError, OptionError

logger = logging.getLogger(__name__)

FAILURES = "failures.jsonl"
_CONCURRENT_GROUPS = 2
"""Number of groups in one encoder, so that it encodes one while it reads or writes the other."""
_SHRINK_GROUPS_BY = 8
"""How many times smaller groups are at the next attempt, if processes died."""
_NUM_RETRIES = 1
"""Number of times that a group of any size is tried again after its process has died."""
_MIN_GROUPS_TO_GIVE_UP = 8
"""If at least so many groups are lost and none is encoded, the images are not at fault."""
_NUM_WRITERS = 8
"""Number of shards that are replaced at the same time."""


@dataclass
class Report:
    """What became of the images of a job."""

    num_images: int = 0
    num_encoded: int = 0
    """Number of images that this job has encoded."""
    num_known: int = 0
    """Number of images whose embeddings existed before."""
    num_total: int = 0
    """Number of images in the directory, with those of earlier jobs."""
    failures: dict[str, str] = field(default_factory=dict)
    """The errors of the images that have no embeddings, by name."""

    def __str__(self) -> str:
        parts = [f"{self.num_images} image(s)", f"{self.num_encoded} encoded"]
        if self.num_known:
            parts.append(f"{self.num_known} encoded before")
        if self.failures:
            parts.append(f"{len(self.failures)} failed")
        return ", ".join(parts)


class EncodingJob:
    """Encodes image files on the cluster that this process is connected to.

    Args:
        settings: the model and its options.
        directory: where the shards are written.
        replicas: the encoders.
        images_per_shard: number of images that are encoded together and written as one shard.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        directory: ShardDirectory,
        replicas: Replicas,
        images_per_shard: int,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._replicas = replicas
        self._images_per_shard = images_per_shard
        self._shards: dict[str, dict[str, str]] = {}
        """The content keys of the images in each shard."""
        self._current: dict[str, str] = {}
        """The content keys of the images that this job has read."""
        self._report = Report()
        self._deaths = DeathLog()

    def run(self, sources: Sources, advance: Callable[[], object]) -> Report:
        """Encode what the directory does not contain yet.

        Args:
            sources: the image files.
            advance: called after each image.

        Raises:
            OptionError: the directory cannot be used or written.
            EngineError: the encoders cannot be started, or all of them die.
        """
        self._report = Report(num_images=len(sources.files))
        self._directory.create()
        self._shards = self._directory.contents()
        try:
            self._encode_all(sources, advance)
        finally:  # keep what is known, also on Ctrl-C
            order = {file.name: number for number, file in enumerate(sources.files)}
            failures = sorted(self._report.failures.items(), key=lambda item: order[item[0]])
            self._report.failures = dict(failures)
            lines = [json.dumps({"name": name, "error": error}) for name, error in failures]
            self._directory.write_file(FAILURES, "".join(f"{line}\n" for line in lines).encode())
        self._remove_superseded()
        self._report.num_total = len(set().union(*self._shards.values()))
        return self._report

    def _encode_all(self, sources: Sources, advance: Callable[[], object]) -> None:
        """Encode all images, in ever smaller groups as long as processes die."""
        pending: dict[str, SourceFile] = {}
        for file in sources.files:
            if is_valid_text(file.name + file.path):
                pending[file.name] = file
            else:
                self._report.failures[file.name] = (
                    "the name is not valid Unicode, as the names in a shard must be: rename the "
                    "file"
                )
                advance()
        sizes = group_sizes(self._images_per_shard)
        for attempt, size in enumerate(sizes, 1):
            if not pending:
                return
            files = list(pending.values())
            groups = [files[start : start + size] for start in range(0, len(files), size)]
            is_alone = attempt == len(sizes)
            for outcome in self._encode(groups, sources.filesystems, is_alone=is_alone):
                self._record(outcome)
                del pending[outcome.name]
                advance()
            if len(pending) == len(files) and len(groups) >= _MIN_GROUPS_TO_GIVE_UP:
                raise EngineError(
                    f"every process that encoded images died, in {len(groups)} group(s) of images "
                    f"({self._reason}): if memory ran out, use a smaller --max-batch-size or fewer "
                    "images per shard"
                )
            if pending:
                logger.warning(
                    "%d image(s) were lost when a process died, and are encoded again in smaller "
                    "groups",
                    len(pending),
                )
                # A process may have died after it had written its shard.
                self._shards |= self._directory.contents(self._shards)
        for name in pending:
            self._report.failures[name] = (
                f"the process died {1 + _NUM_RETRIES} times when it encoded this image "
                f"alone ({self._reason}): the file may be damaged, or too large for the memory"
            )
            advance()

    @property
    def _reason(self) -> str:
        """Why a process died, in Ray's words."""
        lines = str(self._deaths.last or "for an unknown reason").strip().splitlines()
        return next((line.strip() for line in lines[1:] if "cause" in line.lower()), lines[0])

    def _encode(
        self, groups: Sequence[Sequence[SourceFile]], filesystems: Sequence[Any], *, is_alone: bool
    ) -> Iterator[Outcome]:
        """Encode groups, and yield the outcomes of those whose process does not die."""
        import ray.data

        number = min(self._replicas.number, len(groups))
        concurrency = 1 if is_alone else _CONCURRENT_GROUPS
        strategy = ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=number,
            initial_size=number,
            # An image that waits in a process that dies must not be taken for the cause.
            max_tasks_in_flight_per_actor=1 if is_alone else 2 * concurrency,
            max_concurrent_calls_per_actor=concurrency,
            enable_true_multi_threading=True,
        )
        num_threads = max(1, int(self._replicas.num_cpus))
        with ray_data_settings(self._deaths):
            encoded = ray.data.from_blocks(list(self._tables(groups))).map_batches(
                GroupEncoder,
                batch_size=len(groups[0]),
                batch_format="pyarrow",
                fn_constructor_args=(self._settings, self._directory, filesystems, num_threads),
                num_cpus=self._replicas.num_cpus,
                num_gpus=self._replicas.num_gpus,
                max_task_retries=_NUM_RETRIES,
                compute=strategy,
            )
            tables = encoded.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            )
            try:
                for table in tables:
                    for values in table.to_pylist():
                        yield Outcome(**values)
            except ray.exceptions.RayError as error:
                raise EngineError(f"the encoders cannot run: {_cause(error)}") from error

    def _tables(self, groups: Sequence[Sequence[SourceFile]]) -> Iterator[Any]:
        """Return groups as tables, with the keys of what the shards contain by name."""
        import pyarrow

        known: dict[str, list[str]] = {}
        for keys in self._shards.values():
            for name, key in keys.items():
                known.setdefault(name, []).append(key)
        schema = pyarrow.schema(
            {
                "name": pyarrow.string(),
                "path": pyarrow.string(),
                "filesystem": pyarrow.int64(),
                "known_keys": pyarrow.list_(pyarrow.string()),
            }
        )
        for group in groups:
            rows = [{**asdict(file), "known_keys": known.get(file.name, [])} for file in group]
            yield pyarrow.Table.from_pylist(rows, schema)

    def _record(self, outcome: Outcome) -> None:
        if outcome.fatal:
            raise OptionError(outcome.fatal)
        if outcome.error:
            self._report.failures[outcome.name] = outcome.error
            return
        self._current[outcome.name] = outcome.key
        if outcome.shard:
            self._shards.setdefault(outcome.shard, {})[outcome.name] = outcome.key
            self._report.num_encoded += 1
        else:
            self._report.num_known += 1

    def _remove_superseded(self) -> None:
        """Remove the embeddings of earlier contents of a file, and those that exist twice."""
        superseded = superseded_names(self._shards, self._current)
        with ThreadPoolExecutor(_NUM_WRITERS) as pool:
            list(pool.map(lambda item: self._directory.remove(*item), superseded.items()))
        for shard, names in superseded.items():
            for name in names:
                del self._shards[shard][name]


def group_sizes(images_per_shard: int) -> list[int]:
    """Return the sizes of the groups of each attempt: at first a shard, at last a single image."""
    sizes = [images_per_shard]
    while len(sizes) == 1 or sizes[-1] > 1:
        sizes.append(max(1, sizes[-1] // _SHRINK_GROUPS_BY))
    return sizes


def superseded_names(
    shards: Mapping[str, Mapping[str, str]], current: Mapping[str, str]
) -> dict[str, set[str]]:
    """Return the names to remove from each shard, so that each has its current content once.

    Args:
        shards: the content keys of the images in each shard.
        current: the current content keys of images.
    """
    seen: set[str] = set()
    superseded: dict[str, set[str]] = {}
    for shard, keys in shards.items():
        for name, key in keys.items():
            if name in current and (name in seen or key != current[name]):
                superseded.setdefault(shard, set()).add(name)
            elif name in current:
                seen.add(name)
    return superseded


def is_valid_text(text: str) -> bool:
    """Return whether a text has no lone surrogates, which Arrow's strings cannot have."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _cause(error: BaseException) -> str:
    """Return the message of the error that an encoder raised, without Ray's traceback."""
    return str(getattr(error, "cause", None) or error).strip().splitlines()[-1]

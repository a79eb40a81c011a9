"""Writes a text view: a directory that any engine reads as an ordinary text model.

It is written beside its place under another name, and renamed when it is whole. What a write that
was cut short has finished, the next one keeps.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vlcore._utils.progress import progress_bar
from vlcore.checkpoint.weights import read_header
from vlcore.errors import ViewError
from vlcore.language.text_view.manifest import MANIFEST, FileRecord, ViewManifest
from vlcore.language.text_view.plan import LanguageModelSource, Shard, ViewPlan

logger = logging.getLogger(__name__)


def write_view(
    part: LanguageModelSource, directory: Path, *, progress: bool = False, remedy: str = ""
) -> Path:
    """Write the view of a text part, or leave the one that is there.

    Args:
        part: what the view is made of.
        directory: its place, which must be empty or absent.
        progress: show a progress bar.
        remedy: the command that removes a damaged view from its place.

    Raises:
        TensorError: the checkpoint lacks tensors that its architecture asks for.
        ViewError: the place is taken, cannot be written, or holds the view damaged; or the disk
            is too small.
    """
    plan = ViewPlan(part)
    place = directory.resolve()
    remedy = remedy or f"rm -r {shlex.quote(str(directory))}"
    if _is_made(place, plan, remedy):
        return directory
    part.check_tensors()
    partial = place.with_name(f"{place.name}.partial")
    lock = FileLock(place.with_name(f"{place.name}.lock"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, place)
        try:
            if not _is_made(place, plan, remedy):  # by another process, meanwhile
                _write(plan, partial, progress)
                os.replace(partial, place)
            Path(lock.lock_file).unlink(missing_ok=True)
        finally:
            lock.release()
    except OSError as error:
        kept = f". What is finished is kept in {partial} for the next try" * partial.is_dir()
        raise ViewError(
            f"the text view of {part.checkpoint.name} cannot be written to {directory}: "
            f"{error}{kept}"
        ) from error
    return directory


def _acquire(lock: FileLock, place: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process writes %s: waiting for it", place)
        lock.acquire()


def _is_made(place: Path, plan: ViewPlan, remedy: str) -> bool:
    """Tell whether the view is there, whole; nothing else may be in its place."""
    if not place.exists():
        return False
    if not place.is_dir():
        raise ViewError(f"a text view needs a directory; {place} is a file")
    manifest = ViewManifest.read(place)
    if manifest is not None and manifest.made and manifest.key == plan.key:
        manifest.check(place, remedy=remedy)
        return True
    if any(place.iterdir()):
        held = f": it holds a view of {manifest.model}, made of other files" if manifest else ""
        raise ViewError(f"a text view needs an empty directory; {place} is not empty{held}")
    return False


def _write(plan: ViewPlan, partial: Path, progress: bool) -> None:
    """Write or finish the view under its other name."""
    manifest = _resumed(plan, partial)
    missing = [shard for shard in plan.shards if shard.filename not in manifest.files]
    _check_space(plan, missing, partial)
    manifest.write(partial)
    num_tensors = sum(len(shard.sources) for shard in missing)
    with progress_bar(
        num_tensors, description="writing the text view", unit="tensor", shown=progress
    ) as advance:
        for shard in missing:
            _write_shard(plan, shard, partial, advance)
            manifest.files[shard.filename] = FileRecord.of(partial / shard.filename)
            manifest.write(partial)
    for link, path in plan.links.items():
        (partial / link).symlink_to(path.resolve())
    _write_json(partial / "config.json", plan.part.view_config)
    _write_json(
        partial / "model.safetensors.index.json", {"metadata": {}, "weight_map": plan.weight_map}
    )
    plan.part.write_tokenizer(partial)
    for path in sorted(partial.iterdir()):
        if path.name != MANIFEST and path.name not in manifest.files:
            manifest.files[path.name] = FileRecord.of(path)
    manifest.made = datetime.now(UTC).isoformat(timespec="seconds")
    manifest.write(partial)


def _resumed(plan: ViewPlan, partial: Path) -> ViewManifest:
    """Keep the shards that an earlier write of the same view finished, and nothing else."""
    partial.mkdir(exist_ok=True)
    earlier = ViewManifest.read(partial)
    if earlier is None and any(not _is_ours(path) for path in partial.iterdir()):
        raise ViewError(
            f"{partial} is where the text view is written before it is renamed, and it holds "
            "something else: move that away"
        )
    reason = plan.part.context_limit_reason
    note = f"the context ends early, because {reason}" if reason else ""
    manifest = ViewManifest(plan.key, plan.part.checkpoint.origin, note)
    if earlier is not None and earlier.key == plan.key:
        for shard in plan.shards:
            if _is_finished(shard, partial, earlier.files.get(shard.filename)):
                manifest.files[shard.filename] = earlier.files[shard.filename]
    for path in partial.iterdir():
        if path.name not in manifest.files:
            path.unlink()
    return manifest


def _is_ours(path: Path) -> bool:
    return path.name == f"{MANIFEST}.partial"  # of a write that was cut short at its very start


def _is_finished(shard: Shard, partial: Path, record: FileRecord | None) -> bool:
    path = partial / shard.filename
    return (
        record is not None
        and path.is_file()
        and read_header(path) == shard.file.header
        and FileRecord.of(path) == record
    )


def _check_space(plan: ViewPlan, missing: list[Shard], partial: Path) -> None:
    needed = sum(shard.file.num_bytes for shard in missing)
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise ViewError(
            f"the text view of {plan.part.checkpoint.name} needs {_gib(needed)} in "
            f"{partial.parent}, where {_gib(free)} are free: make room (`vlcore cache` lists the "
            "views that are kept), write it to another disk with `vlcore view MODEL DIR`, or keep "
            "all views there by setting VLCORE_CACHE"
        )


def _write_shard(
    plan: ViewPlan, shard: Shard, partial: Path, advance: Callable[[], object]
) -> None:
    """Write a weight file; one stored tensor at a time is in memory."""
    targets: dict[str, list[str]] = {}
    for name, source in shard.sources.items():
        targets.setdefault(source.name, []).append(name)
    unfinished = partial / f"{shard.filename}.partial"
    with shard.file.writing(unfinished) as put:
        for stored, tensor in plan.part.checkpoint.tensors(targets):
            for name in targets[stored]:
                put(name, shard.sources[name].view(tensor))
                advance()
            del tensor  # before the next one is read
    os.replace(unfinished, partial / shard.filename)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 1024**3:.2f} GiB"

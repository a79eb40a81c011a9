"""Writes a text view: a directory that any engine reads as an ordinary text model.

It is written to a directory of another name next to its target, which is renamed when it is
complete. An interrupted write is resumed by the next one.
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
    model: LanguageModelSource, directory: Path, *, progress: bool = False, remedy: str = ""
) -> Path:
    """Write the view of a language model, unless it exists already.

    Args:
        model: the language model.
        directory: the directory of the view, which must be empty or absent.
        progress: whether to show a progress bar.
        remedy: the command that removes a damaged view; by default, ``rm -r``.

    Returns:
        ``directory``.

    Raises:
        TensorError: the checkpoint lacks tensors of its architecture.
        ViewError: the directory holds something else or a damaged view, or cannot be written; or
            there is too little disk space.
    """
    plan = ViewPlan(model)
    target = directory.resolve()
    remedy = remedy or f"rm -r {shlex.quote(str(directory))}"
    if _is_made(target, plan, remedy):
        return directory
    model.check_tensors()
    partial = target.with_name(f"{target.name}.partial")
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, target)
        try:
            if not _is_made(target, plan, remedy):  # another process may have written it
                _write(plan, partial, progress)
                os.replace(partial, target)
            Path(lock.lock_file).unlink(missing_ok=True)
        finally:
            lock.release()
    except OSError as error:
        kept = (
            f". The completed files are kept in {partial} for the next attempt" * partial.is_dir()
        )
        raise ViewError(
            f"the text view of {model.checkpoint.name} cannot be written to {directory}: "
            f"{error}{kept}"
        ) from error
    return directory


def _acquire(lock: FileLock, target: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process writes %s: waiting for it", target)
        lock.acquire()


def _is_made(target: Path, plan: ViewPlan, remedy: str) -> bool:
    """Return whether a complete view exists; raises if the target holds something else."""
    if not target.exists():
        return False
    if not target.is_dir():
        raise ViewError(f"a text view needs a directory; {target} is a file")
    manifest = ViewManifest.read(target)
    if manifest is not None and manifest.made and manifest.key == plan.key:
        manifest.check(target, remedy=remedy)
        return True
    if any(target.iterdir()):
        content = f": it holds a view of {manifest.model}, of other files" if manifest else ""
        raise ViewError(f"a text view needs an empty directory; {target} is not empty{content}")
    return False


def _write(plan: ViewPlan, partial: Path, progress: bool) -> None:
    """Write the view to the partial directory, or resume writing it."""
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
            manifest.files[shard.filename] = FileRecord.from_file(partial / shard.filename)
            manifest.write(partial)
    for link, path in plan.links.items():
        (partial / link).symlink_to(path.resolve())
    _write_json(partial / "config.json", plan.model.view_config)
    _write_json(
        partial / "model.safetensors.index.json", {"metadata": {}, "weight_map": plan.weight_map}
    )
    plan.model.write_tokenizer(partial)
    for path in sorted(partial.iterdir()):
        if path.name != MANIFEST and path.name not in manifest.files:
            manifest.files[path.name] = FileRecord.from_file(path)
    manifest.made = datetime.now(UTC).isoformat(timespec="seconds")
    manifest.write(partial)


def _resumed(plan: ViewPlan, partial: Path) -> ViewManifest:
    """Keep the shards that an earlier write of the same view completed, and remove the rest."""
    partial.mkdir(exist_ok=True)
    earlier = ViewManifest.read(partial)
    if earlier is None and any(not _is_ours(path) for path in partial.iterdir()):
        raise ViewError(
            f"{partial} is the directory in which the text view is written before it is renamed, "
            "and it holds something else: move it away"
        )
    reason = plan.model.context_limit_reason
    note = f"the context is limited, because {reason}" if reason else ""
    manifest = ViewManifest(plan.key, plan.model.checkpoint.origin, note)
    if earlier is not None and earlier.key == plan.key:
        for shard in plan.shards:
            if _is_finished(shard, partial, earlier.files.get(shard.filename)):
                manifest.files[shard.filename] = earlier.files[shard.filename]
    for path in partial.iterdir():
        if path.name not in manifest.files:
            path.unlink()
    return manifest


def _is_ours(path: Path) -> bool:
    return path.name == f"{MANIFEST}.partial"  # left by a write that was interrupted at its start


def _is_finished(shard: Shard, partial: Path, record: FileRecord | None) -> bool:
    path = partial / shard.filename
    return (
        record is not None
        and path.is_file()
        and read_header(path) == shard.file.header
        and FileRecord.from_file(path) == record
    )


def _check_space(plan: ViewPlan, missing: list[Shard], partial: Path) -> None:
    needed = sum(shard.file.num_bytes for shard in missing)
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise ViewError(
            f"the text view of {plan.model.checkpoint.name} needs {_gib(needed)} in "
            f"{partial.parent}, where {_gib(free)} are free: free disk space (`vlcore cache` lists "
            "the cached views), write it to another disk with `vlcore view MODEL DIR`, or set "
            "VLCORE_CACHE to a directory on another disk"
        )


def _write_shard(
    plan: ViewPlan, shard: Shard, partial: Path, advance: Callable[[], object]
) -> None:
    """Write a weight file, with one stored tensor at a time in memory."""
    targets: dict[str, list[str]] = {}
    for name, source in shard.sources.items():
        targets.setdefault(source.name, []).append(name)
    unfinished = partial / f"{shard.filename}.partial"
    with shard.file.writing(unfinished) as put:
        for stored, tensor in plan.model.checkpoint.tensors(targets):
            for name in targets[stored]:
                put(name, shard.sources[name].view(tensor))
                advance()
            del tensor  # before the next one is read
    os.replace(unfinished, partial / shard.filename)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 1024**3:.2f} GiB"

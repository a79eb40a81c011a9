"""``vlcore encode --ray``: the image embeddings of many images, in the shards of a directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import typer

from vlcore._utils.device import choose_dtype
from vlcore._utils.progress import progress_bar
from vlcore.cli.terminal import echo, is_valid_text
from vlcore.cluster.installation import import_ray
from vlcore.cluster.offline.job import EncodingJob
from vlcore.cluster.offline.resources import Replicas
from vlcore.cluster.offline.settings import EncoderSettings
from vlcore.cluster.offline.shards import FORMATS, ShardDirectory
from vlcore.cluster.offline.sources import (
    find_sources,
    is_uri,
    open_filesystem,
    without_credentials,
)
from vlcore.errors import EngineUnavailableError, OptionError
from vlcore.vision.embedding_cache import model_key


@dataclass(frozen=True)
class ClusterOptions:
    """The options of ``vlcore encode --ray`` alone."""

    address: str | None = None
    shard_format: str = "parquet"
    images_per_shard: int = 64
    encoders: int | None = None
    encoder_cpus: float | None = None
    encoder_gpus: float | None = None


def encode_on_cluster(
    settings: EncoderSettings, images: Sequence[str], out: str, options: ClusterOptions
) -> None:
    """Encode images on a cluster, print what became of them, and exit with 1 after failures.

    Args:
        settings: the model and its options.
        images: files, URLs, directories, glob patterns and URIs.
        out: the directory of the shards, or its URI.
        options: how the images are distributed and stored.
    """
    import_ray("ray.data")
    if options.shard_format not in FORMATS:
        raise OptionError(
            f"--format must be one of {', '.join(FORMATS)}; it is {options.shard_format!r}"
        )
    if options.images_per_shard < 1:
        raise OptionError(
            f"--images-per-shard must be at least 1; it is {options.images_per_shard}"
        )
    filesystem, path = _open_output(out)
    sources = find_sources(images)
    if Path(settings.model).is_dir():  # other processes have other working directories
        settings = replace(settings, model=str(Path(settings.model).absolute()))
    config = settings.stages().checkpoint.config
    with _connection(options.address) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        replicas = Replicas.choose(
            nodes,
            device=settings.device,
            number=options.encoders,
            num_cpus=options.encoder_cpus,
            num_gpus=options.encoder_gpus,
        )
        if not replicas.fit_on(nodes):
            echo(
                f"no machine of the cluster has {replicas.num_cpus:g} CPU(s) and "
                f"{replicas.num_gpus:g} GPU(s): waiting for one",
                err=True,
            )
        dtype = choose_dtype(settings.dtype, torch.device(replicas.device), config)
        settings = replace(settings, device=replicas.device, dtype=str(dtype))
        model = settings.vision_model(torch.device("meta"))
        settings.encoder(model)  # an option that is out of range is an error here
        settings = replace(settings, fingerprint=model.fingerprint)
        directory = ShardDirectory(filesystem, path, options.shard_format, model_key(model))
        job = EncodingJob(settings, directory, replicas, options.images_per_shard)
        with progress_bar(
            len(sources.files), description="encoding", unit="image", shown=sys.stderr.isatty()
        ) as advance:
            report = job.run(sources, advance)
    echo(f"{without_credentials(out)} contains the embeddings of {report.num_total} image(s)")
    echo(f"[{report}]", err=True)
    for name, error in report.failures.items():
        echo(f"not encoded: {name}: {error}", err=True)
    if report.failures:
        raise typer.Exit(1)


def _open_output(out: str) -> tuple[Any, str]:
    """Return the filesystem and the path of the output directory."""
    from pyarrow.fs import FileType, LocalFileSystem

    if not is_valid_text(out):
        raise OptionError(f"--out expects a valid Unicode directory name; received {out!r}")
    if is_uri(out):
        filesystem, path = open_filesystem(out)
    else:
        filesystem, path = LocalFileSystem(), str(Path(out).absolute())
        if not Path(path).parent.is_dir():
            raise OptionError(f"--out expects a directory in an existing one; received {out!r}")
    if filesystem.get_file_info(path).type == FileType.File:
        raise OptionError(
            f"--out expects a directory with --ray; {without_credentials(out)!r} is a file"
        )
    return filesystem, path


@contextmanager
def _connection(address: str | None) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine, and disconnect at the end."""
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    if (address or os.environ.get("RAY_ADDRESS", "")).startswith("ray://"):
        raise OptionError(
            "Ray Data runs on the machines of a cluster, and not through ray://: submit the command"
            " with `ray job submit`, or run it on one of the machines with --address auto"
        )
    try:
        ray.init(
            address=address, logging_level="ERROR", log_to_driver=False, include_dashboard=False
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "on this machine" if address is None else f"at {address}"
        raise EngineUnavailableError(f"no Ray cluster can be used {where}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()

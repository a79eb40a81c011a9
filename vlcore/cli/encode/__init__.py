"""``vlcore encode``: the image embeddings of many images, in a file."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlcore.cli.options import (
    Dtype,
    ImageBackground,
    Model,
    Plugin,
    Revision,
    ShrinkOnLoad,
)
from vlcore.cli.terminal import echo, is_valid_text

if TYPE_CHECKING:
    from vlcore.cli.encode.row_file import RowFile
    from vlcore.errors import VlcoreError
    from vlcore.vision.encoder import ImageEncoder

_MAX_FILES_IN_MEMORY = 64


def encode(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, URLs, directories to search for images, and glob patterns such as"
            " 'photos/**/*.jpg'. With --ray, also URIs such as s3://bucket/photos."
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="safetensors file to write, or to extend if it exists. With --ray, a directory or"
            " its URI.",
        ),
    ],
    plugin: Plugin = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="Device to run on, such as cpu, cuda or cuda:1. May be repeated, to run"
            " a copy of the model on each device. Default: CUDA if it is available."
        ),
    ] = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    max_batch_size: Annotated[
        int, typer.Option(help="Maximum number of images in a forward pass.")
    ] = 8,
    shrink_on_load: ShrinkOnLoad = False,
    image_background: ImageBackground = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray", help="Distribute the images over a Ray cluster. Requires vlcore[ray]."
        ),
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of the Ray cluster, from one of its machines: auto, or host:port."
            " Default: that in RAY_ADDRESS, or a cluster on this machine, which is started if there"
            " is none."
        ),
    ] = None,
    shard_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Format of the files with --ray: parquet or safetensors. Default: parquet.",
        ),
    ] = None,
    images_per_shard: Annotated[
        int | None,
        typer.Option(
            help="Number of images that are encoded together and written to one file with --ray."
            " Default: 64.",
        ),
    ] = None,
    encoders: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of copies of the model with --ray. Default: one on each GPU, or on"
            " each machine if there are no GPUs."
        ),
    ] = None,
    encoder_cpus: Annotated[
        float | None,
        typer.Option(help="CPUs for each copy with --ray. Default: its share of the machine's."),
    ] = None,
    encoder_gpus: Annotated[
        float | None,
        typer.Option(help="GPUs for each copy with --ray, such as 0.5. Default: 1 on cuda."),
    ] = None,
) -> None:
    """Compute the embeddings of images, and write them to a safetensors file.

    The file has one tensor for each image, under the image's path. Images that it contains already
    are not encoded again. Images that cannot be encoded are listed at the end, and the exit code is
    then 1.

    With --ray, the images are distributed over a cluster, and their embeddings are written to many
    files of one directory. Everything else stays the same.
    """
    from vlcore.errors import OptionError

    on_cluster = {
        "--address": address,
        "--format": shard_format,
        "--images-per-shard": images_per_shard,
        "--encoders": encoders,
        "--encoder-cpus": encoder_cpus,
        "--encoder-gpus": encoder_gpus,
    }
    stated = [name for name, value in on_cluster.items() if value is not None]
    if stated and not ray:
        raise OptionError(f"{', '.join(stated)} can only be used with --ray")
    if ray:
        if len(device or []) > 1:
            raise OptionError("--device can only be stated once with --ray: use --encoders")
        from vlcore.cli.encode.on_cluster import ClusterOptions, encode_on_cluster
        from vlcore.cluster.offline.settings import EncoderSettings

        settings = EncoderSettings(
            model,
            plugin=plugin,
            revision=revision,
            device=device[0] if device else "auto",
            dtype=dtype,
            max_batch_size=max_batch_size,
            shrink_on_load=shrink_on_load,
            image_background=image_background,
        )
        options = ClusterOptions(
            address,
            shard_format or "parquet",
            64 if images_per_shard is None else images_per_shard,
            encoders,
            encoder_cpus,
            encoder_gpus,
        )
        encode_on_cluster(settings, images, out, options)
        return
    _encode_here(
        model,
        images,
        Path(out),
        plugin=plugin,
        device=device,
        dtype=dtype,
        revision=revision,
        max_batch_size=max_batch_size,
        shrink_on_load=shrink_on_load,
        image_background=image_background,
    )


def _encode_here(
    model: str,
    images: Sequence[str],
    out: Path,
    *,
    plugin: str | None,
    device: Sequence[str] | None,
    dtype: str,
    revision: str | None,
    max_batch_size: int,
    shrink_on_load: bool,
    image_background: str | None,
) -> None:
    from vlcore._utils.device import as_device, choose_dtype
    from vlcore._utils.progress import progress_bar
    from vlcore.cli.encode.row_file import RowFile
    from vlcore.errors import OptionError
    from vlcore.media.image_files import find_images
    from vlcore.plugins.stages import ModelStages
    from vlcore.vision.embedding_cache import model_key
    from vlcore.vision.encoder import ImageEncoder

    if not out.parent.is_dir() or out.is_dir():
        raise OptionError(f"--out expects a file in an existing directory; received {str(out)!r}")
    if not is_valid_text(str(out)):
        raise OptionError(f"--out expects a valid Unicode file name; received {str(out)!r}")
    names = find_images(images)
    stages = ModelStages(model, plugin=plugin, revision=revision)
    devices = [as_device(name) for name in device or ["auto"]]
    precision = choose_dtype(dtype, devices[0], stages.checkpoint.config)
    vision_models = [stages.vision_model(one_device, precision) for one_device in devices]
    file = RowFile(out, model_key(vision_models[0]), vision_models[0].row_width)
    encoder = ImageEncoder(
        vision_models,
        max_batch_size=max_batch_size,
        rows_device="cpu",
        shrink_on_load=shrink_on_load,
        image_background=image_background,
    )
    try:
        with progress_bar(
            len(names), description="encoding", unit="image", shown=sys.stderr.isatty()
        ) as advance:
            failures = asyncio.run(_encode_all(encoder, names, file, advance))
    finally:  # keep what is done, also on Ctrl-C
        file.save()
    echo(f"{out} contains the embeddings of {len(file)} image(s)")
    echo(f"[{encoder.stats()}]", err=True)
    for name, error in failures.items():
        echo(f"not encoded: {name}: {error}", err=True)
    if failures:
        raise typer.Exit(1)


async def _encode_all(
    encoder: ImageEncoder, names: Sequence[str], file: RowFile, advance: Callable[[], object]
) -> dict[str, VlcoreError]:
    from vlcore.errors import ImageError, VlcoreError
    from vlcore.media.source import read_image
    from vlcore.vision.embedding_cache import file_key

    key_of = partial(
        file_key,
        options=encoder.vision_model.request_options(num_images=1),
        model=encoder.vision_model,
        shrink_on_load=encoder.shrink_on_load,
        background=encoder.image_background,
    )
    in_memory, saving = asyncio.Semaphore(_MAX_FILES_IN_MEMORY), asyncio.Lock()
    failures: dict[str, VlcoreError] = {}

    async def encode_one(name: str) -> None:
        async with in_memory:
            try:
                if not is_valid_text(name):
                    raise ImageError(
                        "the name is not valid Unicode, as the keys of a safetensors file must be: "
                        "rename the file"
                    )
                data = await asyncio.to_thread(read_image, name)
                key = await asyncio.to_thread(key_of, data)
                if not file.has(name, key):
                    (image,) = await encoder.encode([data])
                    file.put(name, key, image.rows)
            except VlcoreError as error:
                failures[name] = error
            finally:
                advance()
            async with saving:
                if file.is_due:
                    await asyncio.to_thread(file.save)

    async with encoder:
        await asyncio.gather(*map(encode_one, names))
    return {name: failures[name] for name in names if name in failures}

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
        typer.Argument(help="Image files, URLs, and directories to search for images."),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="safetensors file to write, or to extend if it exists."),
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
) -> None:
    """Compute the embeddings of images, and write them to a safetensors file.

    The file has one tensor for each image, under the image's path. Images that it contains already
    are not encoded again. Images that cannot be encoded are listed at the end, and the exit code is
    then 1.
    """
    from vlcore._utils.device import as_device, choose_dtype
    from vlcore._utils.progress import progress_bar
    from vlcore.cli.encode.row_file import RowFile
    from vlcore.errors import OptionError
    from vlcore.plugins.stages import ModelStages
    from vlcore.vision.embedding_cache import model_key
    from vlcore.vision.encoder import ImageEncoder

    if not out.parent.is_dir() or out.is_dir():
        raise OptionError(f"--out expects a file in an existing directory; received {str(out)!r}")
    if not is_valid_text(str(out)):
        raise OptionError(f"--out expects a valid Unicode file name; received {str(out)!r}")
    names = _find_images(images)
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


def _find_images(images: Sequence[str]) -> list[str]:
    """List the images, those of a directory in alphabetical order."""
    from PIL import Image

    from vlcore.errors import OptionError
    from vlcore.media.policy import FORMATS

    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    found: dict[str, None] = {}
    for image in images:
        if Path(image).is_dir():
            files = sorted(path for path in Path(image).rglob("*") if path.is_file())
            found |= {str(path): None for path in files if path.suffix.lower() in suffixes}
        else:
            found[image] = None
    if not found:
        raise OptionError(f"no images found in {', '.join(images)}")
    return list(found)


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

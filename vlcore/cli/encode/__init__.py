"""``vlcore encode``: the image rows of many pictures, in a file."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlcore.cli.options import Dtype, Model, Plugin, Revision, ShrinkOnLoad

if TYPE_CHECKING:
    from vlcore.cli.encode.row_file import RowFile
    from vlcore.errors import VlcoreError
    from vlcore.vision.encoder import ImageEncoder

_MAX_FILES_IN_MEMORY = 64


def encode(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(help="Pictures (paths or URLs), and folders to search for pictures."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the rows go, as safetensors.")],
    plugin: Plugin = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="auto, cpu, cuda, cuda:1, …; several times for a copy on each."),
    ] = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    max_batch_size: Annotated[int, typer.Option(help="Pictures in one forward.")] = 8,
    shrink_on_load: ShrinkOnLoad = False,
) -> None:
    """Encode pictures into FILE: for each a tensor of rows, under the picture's name.

    A picture that cannot be encoded is listed at the end. Pictures that FILE holds already are not
    encoded again.
    """
    from vlcore._utils.device import as_device, choose_dtype
    from vlcore._utils.progress import progress_bar
    from vlcore.cli.encode.row_file import RowFile
    from vlcore.errors import OptionError
    from vlcore.plugins.stages import ModelStages
    from vlcore.vision.embedding_cache import model_key
    from vlcore.vision.encoder import ImageEncoder

    if not out.parent.is_dir() or out.is_dir():
        raise OptionError(
            f"--out needs the name of a file in a directory that is there; it is {str(out)!r}"
        )
    names = _find_pictures(images)
    stages = ModelStages(model, plugin=plugin, revision=revision)
    places = [as_device(name) for name in device or ["auto"]]
    precision = choose_dtype(dtype, places[0], stages.checkpoint.config)
    replicas = [stages.vision_model(place, precision) for place in places]
    file = RowFile(out, model_key(replicas[0]))
    encoder = ImageEncoder(
        replicas,
        max_batch_size=max_batch_size,
        rows_device="cpu",
        shrink_on_load=shrink_on_load,
    )
    try:
        with progress_bar(
            len(names), description="encoding", unit="image", shown=sys.stderr.isatty()
        ) as advance:
            failures = asyncio.run(_encode_all(encoder, names, file, advance))
    finally:  # what is done is kept, also when somebody interrupts
        file.save()
    typer.echo(f"{out} holds the rows of {len(file)} image(s)")
    typer.echo(f"[{encoder.stats()}]", err=True)
    for name, error in failures.items():
        typer.echo(f"not encoded: {name}: {error}", err=True)
    if failures:
        raise typer.Exit(1)


def _find_pictures(images: Sequence[str]) -> list[str]:
    """List the pictures, those of a folder in alphabetical order."""
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
        raise OptionError(f"there are no pictures in {', '.join(images)}")
    return list(found)


async def _encode_all(
    encoder: ImageEncoder, names: Sequence[str], file: RowFile, advance: Callable[[], object]
) -> dict[str, VlcoreError]:
    from vlcore.errors import VlcoreError
    from vlcore.media.source import read_image
    from vlcore.vision.embedding_cache import file_key

    key_of = partial(
        file_key,
        options={},
        model=encoder.vision_model,
        shrink_on_load=encoder.shrink_on_load,
    )
    places, saving = asyncio.Semaphore(_MAX_FILES_IN_MEMORY), asyncio.Lock()
    failures: dict[str, VlcoreError] = {}

    async def encode_one(name: str) -> None:
        async with places:
            try:
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

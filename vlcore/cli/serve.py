"""``vlcore serve``: a model behind OpenAI's chat API."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlcore.cli.options import (
    Device,
    Dtype,
    EngineName,
    Model,
    Plugin,
    Revision,
    ShrinkOnLoad,
    TemplateName,
    Weights,
)

if TYPE_CHECKING:
    from vlcore.engines.transformers.engine import TransformersEngineConfig

_KEY_VARIABLE = "VLCORE_API_KEY"
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "WEBP")
"""What browsers show: the fewer decoders a stranger reaches, the better."""


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for one that is free.")] = 23333,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="A key that requests must bring; several are possible. Other processes can see "
            f"it: rather put keys into {_KEY_VARIABLE}, with commas between them.",
        ),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="What requests call the model, if not by its own name.")
    ] = None,
    engine: EngineName = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    weights: Weights = None,
    max_num_seqs: Annotated[
        int | None,
        typer.Option(help="Answers that run together; the transformers engine only."),
    ] = None,
    session_len: Annotated[
        int | None,
        typer.Option(
            help="The longest prompt and answer, in tokens; the transformers engine only."
        ),
    ] = None,
    plugin: Plugin = None,
    chat_template: TemplateName = None,
    revision: Revision = None,
    shrink_on_load: ShrinkOnLoad = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name by which clients may call this server.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A site whose pages may ask (CORS).")
    ] = None,
    max_requests: Annotated[
        int, typer.Option(help="Requests answered or waiting at a time; one more gets 429.")
    ] = 64,
    max_body_mib: Annotated[int, typer.Option(help="Of one request.")] = 32,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(help="Tokens and image rows; if not all that fits the context.")
    ] = None,
    max_prompt_chars: Annotated[int, typer.Option(help="Of the texts of one request.")] = 200_000,
    max_images: Annotated[int, typer.Option(help="In one request.")] = 16,
    max_image_mib: Annotated[int, typer.Option(help="Of one picture's file or download.")] = 20,
    max_pixels: Annotated[int, typer.Option(help="Of one picture.")] = 64_000_000,
    image_format: Annotated[
        list[str] | None,
        typer.Option(help=f"A format that is opened; if none is named, {', '.join(_FORMATS)}."),
    ] = None,
    max_decoded_mib: Annotated[
        int, typer.Option(help="Of all pictures of a request together, decoded.")
    ] = 512,
    download_timeout_s: Annotated[float, typer.Option(help="For one picture to come.")] = 20.0,
    connect_timeout_s: Annotated[
        float, typer.Option(help="To find and reach a picture's server, and between its bytes.")
    ] = 5.0,
    max_redirects: Annotated[int, typer.Option(help="On the way to one picture.")] = 3,
    image_urls: Annotated[
        bool, typer.Option(help="Fetch pictures from http(s) URLs, of public addresses.")
    ] = True,
    allow_image_host: Annotated[
        list[str] | None, typer.Option(help="A host to fetch from though it is not public.")
    ] = None,
    allow_image_network: Annotated[
        list[str] | None, typer.Option(help="A network to fetch from, such as 10.1.0.0/16.")
    ] = None,
    allow_image_directory: Annotated[
        list[Path] | None, typer.Option(help="A directory whose files requests may name.")
    ] = None,
    deadline_s: Annotated[float, typer.Option(help="For a request as a whole.")] = 300.0,
    body_timeout_s: Annotated[
        float, typer.Option(help="For the body of a request to arrive.")
    ] = 30.0,
    shutdown_timeout_s: Annotated[
        float, typer.Option(help="For running requests to finish when the server stops.")
    ] = 30.0,
) -> None:
    """Serve MODEL over HTTP, with a page to try it on at /."""
    from vlcore.errors import EngineUnavailableError
    from vlcore.inference.factory import pipeline
    from vlcore.media.policy import ImageAccess, ImageLimits

    try:
        from vlcore.server.log_config import set_up_log
        from vlcore.server.serving import bind
        from vlcore.server.serving import serve as serve_pipeline
        from vlcore.server.settings import ServerSettings
    except ModuleNotFoundError as error:
        raise EngineUnavailableError(
            f"the server needs {error.name}: pip install 'vlcore[serve]'"
        ) from error

    keys = [*(api_key or []), *filter(None, os.environ.get(_KEY_VARIABLE, "").split(","))]
    settings = ServerSettings(
        model_name=model_name or _name(model),
        host=host,
        port=port,
        api_keys=tuple(keys),
        allowed_hosts=tuple(allow_host or ()),
        allowed_origins=tuple(allow_origin or ()),
        max_requests=max_requests,
        max_body_bytes=max_body_mib * 1024**2,
        deadline_s=deadline_s,
        body_timeout_s=body_timeout_s,
        shutdown_timeout_s=shutdown_timeout_s,
    )
    access = ImageAccess(
        urls=image_urls,
        allowed_hosts=tuple(allow_image_host or ()),
        allowed_networks=tuple(allow_image_network or ()),
        allowed_directories=tuple(allow_image_directory or ()),
    )
    limits = ImageLimits(
        max_pixels=max_pixels,
        max_bytes=max_image_mib * 1024**2,
        connect_timeout_s=connect_timeout_s,
        timeout_s=download_timeout_s,
        max_redirects=max_redirects,
        formats=tuple(name.upper() for name in image_format or _FORMATS),
        max_images=max_images,
        max_decoded_bytes=max_decoded_mib * 1024**2,
    )
    set_up_log()
    with bind(settings) as bound:
        pipe = pipeline(
            model,
            engine=engine,
            device=device,
            dtype=dtype,
            plugin=plugin,
            chat_template=chat_template,
            revision=revision,
            engine_config=_engine_config(
                weights=weights, max_num_seqs=max_num_seqs, session_len=session_len
            ),
            shrink_on_load=shrink_on_load,
            progress=sys.stderr.isatty(),
            max_prompt_tokens=max_prompt_tokens,
            max_prompt_chars=max_prompt_chars,
            image_access=access,
            image_limits=limits,
        )
        serve_pipeline(pipe, settings, bound)


def _engine_config(**options: Any) -> TransformersEngineConfig | None:
    """Settings that are given choose the engine that has them."""
    from vlcore.engines.transformers.engine import TransformersEngineConfig

    given = {name: value for name, value in options.items() if value is not None}
    return TransformersEngineConfig(**given) if given else None


def _name(model: str) -> str:
    """Call a directory by its last name, which says nothing of where it lies."""
    return Path(model).resolve().name if Path(model).is_dir() else model

"""``vlcore serve``: a model behind OpenAI's chat API."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

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
)

_KEY_VARIABLE = "VLCORE_API_KEY"


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
    from vlcore.pipeline import pipeline

    try:
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
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    bound = bind(settings)
    options: dict[str, Any] = {}
    pipe = pipeline(
        model,
        engine=engine,
        device=device,
        dtype=dtype,
        plugin=plugin,
        chat_template=chat_template,
        revision=revision,
        shrink_on_load=shrink_on_load,
        progress=sys.stderr.isatty(),
        **options,
    )
    serve_pipeline(pipe, settings, bound)


def _name(model: str) -> str:
    """Call a directory by its last name, which says nothing of where it lies."""
    return Path(model).resolve().name if Path(model).is_dir() else model

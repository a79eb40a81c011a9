"""``vlcore serve``: an OpenAI-compatible server for one model."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from vlcore._utils.signals import exit_on_sigterm
from vlcore.cli.engine_options import engine_config
from vlcore.cli.options import (
    Device,
    Dtype,
    EngineName,
    ImageBackground,
    Model,
    ModelName,
    Plugin,
    Revision,
    ShrinkOnLoad,
    TemplateName,
    Weights,
)

_KEY_VARIABLE = "VLCORE_API_KEY"
_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "PNG", "WEBP")
"""The formats that browsers show, and HEIF, which needs a package of its own. Fewer decoders leave
less to attack."""


def serve(
    model: Model,
    host: Annotated[
        str, typer.Option(help="Address to listen on. 0.0.0.0 listens on all interfaces.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on. 0 picks a free port.")] = 23333,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="API key that requests must send. May be repeated. Other processes can read the "
            f"command line: prefer the variable {_KEY_VARIABLE}, a comma-separated list.",
        ),
    ] = None,
    model_name: ModelName = None,
    engine: EngineName = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    weights: Weights = None,
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of sequences in a batch. Transformers and vLLM engines only. "
            "Default: 16 for transformers, and vLLM's own."
        ),
    ] = None,
    session_len: Annotated[
        int | None,
        typer.Option(
            help="Maximum total length of a prompt and its response, in tokens. Transformers "
            "and vLLM engines only. Default: the context length of the model."
        ),
    ] = None,
    tensor_parallel_size: Annotated[
        int | None,
        typer.Option(
            help="Number of devices among which the language model is split. Requires "
            "--engine vllm. Default: 1."
        ),
    ] = None,
    memory_share: Annotated[
        float | None,
        typer.Option(
            help="Share of the device's memory that the language model and its KV cache use, "
            "from 0 to 1. Requires --engine vllm. Default: 0.9, or what is free."
        ),
    ] = None,
    compile_step: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the model for decoding steps at startup, which takes up to a minute and "
            "requires a C++ compiler. Transformers engine on a CPU only. Default: no.",
        ),
    ] = None,
    prefix_caching: Annotated[
        bool | None,
        typer.Option(
            "--prefix-caching/--no-prefix-caching",
            help="Reuse what was computed for the beginning of earlier prompts. Transformers and "
            "vLLM engines only. Default: on.",
        ),
    ] = None,
    plugin: Plugin = None,
    chat_template: TemplateName = None,
    revision: Revision = None,
    shrink_on_load: ShrinkOnLoad = False,
    generation_config: Annotated[
        bool,
        typer.Option(
            help="Use the sampling values of the model's generation_config.json for options that "
            "a request does not set."
        ),
    ] = True,
    image_background: ImageBackground = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name to accept in the Host header in addition to those of --host."
            " May be repeated."
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin whose web pages may send requests (CORS). May be repeated."),
    ] = None,
    root_path: Annotated[
        str,
        typer.Option(
            help="Path prefix under which a reverse proxy serves this server, such as /vlcore."
        ),
    ] = "",
    strict: Annotated[
        bool,
        typer.Option(help="Refuse requests with unknown fields instead of ignoring the fields."),
    ] = False,
    max_requests: Annotated[
        int,
        typer.Option(
            help="Maximum number of running and waiting requests. Further ones receive status 429."
        ),
    ] = 64,
    max_body_mib: Annotated[int, typer.Option(help="Maximum request body size, in MiB.")] = 32,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(
            help="Maximum length of a prompt, in tokens, including one for each image embedding. "
            "Default: the context length of the model."
        ),
    ] = None,
    max_prompt_chars: Annotated[
        int, typer.Option(help="Maximum total length of all texts in a request, in characters.")
    ] = 200_000,
    max_images: Annotated[int, typer.Option(help="Maximum number of images in a request.")] = 16,
    max_image_mib: Annotated[int, typer.Option(help="Maximum file size of an image, in MiB.")] = 20,
    max_pixels: Annotated[
        int, typer.Option(help="Maximum number of pixels (width times height) of an image.")
    ] = 64_000_000,
    image_format: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Image format to accept. May be repeated. Default: {', '.join(_FORMATS)}."
        ),
    ] = None,
    max_decoded_mib: Annotated[
        int, typer.Option(help="Maximum memory for decoding all images of a request, in MiB.")
    ] = 512,
    max_videos: Annotated[int, typer.Option(help="Maximum number of videos in a request.")] = 4,
    max_video_mib: Annotated[int, typer.Option(help="Maximum file size of a video, in MiB.")] = 64,
    max_video_seconds: Annotated[
        float, typer.Option(help="Maximum duration of a video, in seconds.")
    ] = 600.0,
    max_video_frames: Annotated[
        int, typer.Option(help="Maximum number of frames of a video that the model receives.")
    ] = 128,
    download_timeout_s: Annotated[
        float,
        typer.Option(
            help="Maximum time to download an image or a video, including redirects, in seconds."
        ),
    ] = 20.0,
    connect_timeout_s: Annotated[
        float,
        typer.Option(
            help="Maximum time to connect to an image server and between reads, in seconds. "
            "Hosts that are not allowed or do not exist are refused after this time."
        ),
    ] = 5.0,
    max_redirects: Annotated[
        int, typer.Option(help="Maximum number of redirects to follow when downloading an image.")
    ] = 3,
    image_urls: Annotated[
        bool,
        typer.Option(
            help="Whether requests may refer to images by http(s) URLs at public addresses."
        ),
    ] = True,
    allow_image_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host to download images from even if its address is not public. May be repeated."
        ),
    ] = None,
    allow_image_network: Annotated[
        list[str] | None,
        typer.Option(help="Network to download images from, such as 10.1.0.0/16. May be repeated."),
    ] = None,
    allow_image_directory: Annotated[
        list[Path] | None,
        typer.Option(
            help="Directory whose image files requests may refer to by path. May be repeated."
        ),
    ] = None,
    deadline_s: Annotated[
        float, typer.Option(help="Maximum time to answer a request, in seconds.")
    ] = 300.0,
    body_timeout_s: Annotated[
        float, typer.Option(help="Maximum time to receive a request body, in seconds.")
    ] = 30.0,
    shutdown_timeout_s: Annotated[
        float,
        typer.Option(help="Maximum time for running requests to finish on shutdown, in seconds."),
    ] = 30.0,
) -> None:
    """Serve a model with an OpenAI-compatible API, and a chat page at /."""
    from vlcore.errors import EngineUnavailableError
    from vlcore.inference.factory import pipeline
    from vlcore.media.policy import ImageAccess, ImageLimits
    from vlcore.media.video import VideoLimits

    try:
        from vlcore.server.log_config import set_up_log
        from vlcore.server.serving import bind
        from vlcore.server.serving import serve as serve_pipeline
        from vlcore.server.settings import ServerSettings, parse_api_keys
    except ModuleNotFoundError as error:
        raise EngineUnavailableError(
            f"the server needs {error.name}: pip install 'vlcore[serve]'"
        ) from error

    keys = [*(api_key or ())]
    if (listed := os.environ.get(_KEY_VARIABLE)) is not None:
        keys += parse_api_keys(listed)
    settings = ServerSettings(
        model_name=model_name or _name(model),
        host=host,
        port=port,
        api_keys=tuple(keys),
        allowed_hosts=tuple(allow_host or ()),
        allowed_origins=tuple(allow_origin or ()),
        root_path=root_path,
        strict=strict,
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
    video_limits = VideoLimits(
        max_bytes=max_video_mib * 1024**2,
        max_duration_s=max_video_seconds,
        max_frames=max_video_frames,
        max_decoded_bytes=max_decoded_mib * 1024**2,
        connect_timeout_s=connect_timeout_s,
        timeout_s=download_timeout_s,
        max_redirects=max_redirects,
        max_videos=max_videos,
    )
    set_up_log()
    with bind(settings) as bound:
        if generation_config:
            settings = replace(settings, sampling_defaults=_sampling_defaults(model, revision))
        with exit_on_sigterm():
            pipe = pipeline(
                model,
                engine=engine,
                device=device,
                dtype=dtype,
                plugin=plugin,
                chat_template=chat_template,
                revision=revision,
                engine_config=engine_config(
                    engine,
                    weights=weights,
                    max_num_seqs=max_num_seqs,
                    session_len=session_len,
                    tensor_parallel_size=tensor_parallel_size,
                    memory_share=memory_share,
                    prefix_caching=prefix_caching,
                    compile=compile_step,
                ),
                shrink_on_load=shrink_on_load,
                image_background=image_background,
                progress=sys.stderr.isatty(),
                max_prompt_tokens=max_prompt_tokens,
                max_prompt_chars=max_prompt_chars,
                image_access=access,
                image_limits=limits,
                video_limits=video_limits,
            )
        serve_pipeline(pipe, settings, bound)


def _sampling_defaults(model: str, revision: str | None) -> dict[str, Any]:
    """Read the model's own sampling options.

    Raises:
        ConfigError: generation_config.json is invalid.
    """
    from vlcore.checkpoint.checkpoint import Checkpoint
    from vlcore.engines.sampling_defaults import read_sampling_defaults
    from vlcore.errors import ConfigError

    checkpoint = Checkpoint.open(model, revision=revision)
    try:
        return read_sampling_defaults(checkpoint)
    except ConfigError as error:
        raise ConfigError(
            f"{error}. Correct it, or ignore it with --no-generation-config"
        ) from error


def _name(model: str) -> str:
    """The default model name: a Hub repo id, or the last part of a directory, not its path."""
    return Path(model).resolve().name if Path(model).is_dir() else model

"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

Model: TypeAlias = Annotated[str, typer.Argument(help="Checkpoint directory or Hub repo id.")]
ModelName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Name of the model in the API. Default: the Hub repo id, or the name of the directory."
    ),
]
Images: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--image", "-i", help="Image file or URL. May be repeated for several images."),
]
Videos: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--video", help="Video file or URL. May be repeated for several videos."),
]
Plugin: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Name of the plugin to use. Only needed if several support the model."),
]
TemplateName: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Name of one of the plugin's chat templates. Default: that of the model."),
]
EngineName: TypeAlias = Annotated[
    str,
    typer.Option(
        "--engine",
        help="Engine that runs the language model: turbomind, vllm, transformers, or auto "
        "for the first of them that can run the model here.",
    ),
]
Device: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Device to run on, such as cpu, cuda or cuda:1. auto selects CUDA if it is available."
    ),
]
Dtype: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Data type of the weights: float32, float16, bfloat16, or auto to "
        "choose by the checkpoint and the device."
    ),
]
ShrinkOnLoad: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--shrink-on-load",
        help="Decode JPEG images at 1/2, 1/4 or 1/8 of their size if the model needs"
        " no more, which is faster.",
    ),
]
ImageBackground: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Colour behind transparent pixels, such as white or #ffffff. Default: that of the "
        "model, which is the stored colour in most cases."
    ),
]
Weights: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Quantize the weights: int8, or int4 on a CPU. Transformers engine only. Default: no "
        "quantization."
    ),
]
Revision: TypeAlias = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the Hub repository.")
]

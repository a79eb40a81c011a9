"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

Model: TypeAlias = Annotated[str, typer.Argument(help="Checkpoint directory or Hub repo id.")]
Images: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--image", "-i", help="Image path or URL. May be repeated."),
]
Plugin: TypeAlias = Annotated[
    str | None, typer.Option(help="Plugin to use if several serve the model.")
]
TemplateName: TypeAlias = Annotated[
    str | None, typer.Option(help="Name of one of the plugin's chat templates.")
]
EngineName: TypeAlias = Annotated[
    str, typer.Option("--engine", help="Inference engine: auto, turbomind or transformers.")
]
Device: TypeAlias = Annotated[
    str, typer.Option(help="Device of the model: auto, cpu, cuda, cuda:1, …")
]
Dtype: TypeAlias = Annotated[
    str, typer.Option(help="Data type of the weights: auto, float32, float16 or bfloat16.")
]
ShrinkOnLoad: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--shrink-on-load",
        help="Decode JPEG images at 1/2, 1/4 or 1/8 of their size if the model needs no more.",
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
    typer.Option(help="Weight quantization: int8. Transformers engine only."),
]
Revision: TypeAlias = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")
]

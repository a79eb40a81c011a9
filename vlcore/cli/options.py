"""What several commands ask for, in the same words."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

Model: TypeAlias = Annotated[str, typer.Argument(help="A checkpoint directory or hub id.")]
Images: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--image", "-i", help="A picture (path or URL); may be given several times."),
]
Plugin: TypeAlias = Annotated[
    str | None, typer.Option(help="The plugin to use where several serve the model.")
]
TemplateName: TypeAlias = Annotated[
    str | None, typer.Option(help="One of the plugin's templates, by name.")
]
EngineName: TypeAlias = Annotated[
    str, typer.Option("--engine", help="auto, turbomind or transformers.")
]
Device: TypeAlias = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Dtype: TypeAlias = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
ShrinkOnLoad: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--shrink-on-load",
        help="Decode JPEGs at a half to an eighth of their size where the model needs no more.",
    ),
]
Weights: TypeAlias = Annotated[
    str | None,
    typer.Option(help="int8 converts the weights to 8 bits; the transformers engine only."),
]
Revision: TypeAlias = Annotated[str | None, typer.Option(help="Of a hub repository.")]

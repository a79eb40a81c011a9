"""``vlcore chat``: chat with a model about images, once or interactively."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vlcore.cli.grammar_options import Choices, JsonSchema, Regex, read_grammar
from vlcore.cli.image_argument import read_image_argument
from vlcore.cli.options import (
    Device,
    Dtype,
    EngineName,
    ImageBackground,
    Images,
    Model,
    Plugin,
    Revision,
    TemplateName,
    Videos,
    Weights,
)
from vlcore.cli.terminal import echo, is_valid_text

if TYPE_CHECKING:
    from PIL import Image

    from vlcore.inference.pipeline import Pipeline
    from vlcore.inference.response import Session
    from vlcore.prompts.chat_template import ChatTemplate

_HELP = """\
/image PATH|URL   attach an image to the next message; quotes, \\ and ~ are read as in a shell
/video PATH|URL   attach a video to the next message
/reset            start a new conversation
/help             list these commands
/exit             quit (as does the end of input)
Ctrl-C stops a response."""


def chat(
    model: Model,
    prompt: Annotated[
        str | None,
        typer.Argument(help="Message to send. If it is omitted, an interactive chat starts."),
    ] = None,
    image: Images = None,
    video: Videos = None,
    plugin: Plugin = None,
    chat_template: TemplateName = None,
    engine: EngineName = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    weights: Weights = None,
    image_background: ImageBackground = None,
    revision: Revision = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Maximum length of a response, in tokens.")
    ] = 512,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Sampling temperature, from 0 to 100. Default: greedy decoding, the same as 0."
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Sample from the most likely tokens whose probabilities add up to this "
            "value, from 0 to 1. Requires --temperature. Default: 1."
        ),
    ] = None,
    frequency_penalty: Annotated[
        float,
        typer.Option(
            help="Penalty of a token for each time that the response contains it, from -2 to 2."
        ),
    ] = 0.0,
    presence_penalty: Annotated[
        float,
        typer.Option(help="Penalty of a token that the response contains, from -2 to 2."),
    ] = 0.0,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed that makes sampling reproducible. Requires --temperature."),
    ] = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    choice: Choices = None,
    draw: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Image file in which to draw the regions that the response refers to, "
            "on the last image of the conversation.",
        ),
    ] = None,
) -> None:
    """Chat with a model about images and videos, interactively or with one message."""
    from vlcore.engines.generation import GenerationConfig
    from vlcore.engines.transformers.config import TransformersEngineConfig
    from vlcore.inference.factory import pipeline
    from vlcore.media.undecoded_video import UndecodedVideo

    sampling = {"temperature": temperature, "top_p": top_p, "random_seed": seed}
    options: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    if options and temperature is None:
        raise typer.BadParameter("--top-p and --seed affect sampling, which requires --temperature")
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature is not None,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        grammar=read_grammar(json_schema, regex, choice),
        **options,
    )
    template: str | ChatTemplate | None = chat_template
    if draw is not None:
        if prompt is not None and not image:
            raise typer.BadParameter("--draw needs an image to draw on: pass --image")
        template = _drawing_template(draw, model, plugin, chat_template, revision)
    with pipeline(
        model,
        engine=engine,
        device=device,
        dtype=dtype,
        plugin=plugin,
        chat_template=template,
        revision=revision,
        engine_config=None if weights is None else TransformersEngineConfig(weights=weights),
        progress=sys.stderr.isatty(),
        image_background=image_background,
    ) as pipe:
        media = [*(image or ()), *map(UndecodedVideo, video or ())]
        conversation = _Chat(pipe, config, media, draw)
        if prompt is not None:
            conversation.send(prompt)
        else:
            conversation.run()
        stats = pipe.encoder_stats()
        if stats.num_images:
            echo(f"[{stats}]", err=True)


def _drawing_template(
    draw: Path, model: str, plugin: str | None, name: str | None, revision: str | None
) -> ChatTemplate:
    """Load the template, and check before any weight is read that regions can be drawn.

    Raises:
        OptionError: the file cannot be written, or responses of the model name no regions.
    """
    from PIL import Image

    from vlcore.errors import OptionError
    from vlcore.plugins.stages import ModelStages

    writable = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE
    }
    if draw.suffix.lower() not in writable or not draw.parent.is_dir():
        raise OptionError(
            f"--draw expects an image file, such as response.png, in an existing directory; "
            f"received {str(draw)!r}"
        )
    stages = ModelStages(model, plugin=plugin, revision=revision)
    template = stages.chat_template(name)
    if not template.finds_regions:
        raise OptionError(
            f"--draw needs a model whose responses refer to regions of an image; "
            f"{stages.plugin.info.distribution} does not support regions for {model}"
        )
    return template


class _Chat:
    """A conversation at a terminal."""

    def __init__(
        self, pipe: Pipeline, config: Any, media: list[Any], draw: Path | None = None
    ) -> None:
        from vlcore.inference.response import Session

        self._pipe = pipe
        self._config = config
        self._media = media
        self._draw = draw
        self._session: Session = Session()

    def run(self) -> None:
        """Respond to each line until the input ends."""
        from vlcore.errors import VlcoreError

        with suppress(ImportError):  # adds line editing and history to input(), if available
            import readline  # noqa: F401
        echo("Type a message; /help lists the commands.", err=True)
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                echo(err=True)
                continue
            try:
                if not line:
                    continue
                if line in ("/exit", "/quit"):
                    return
                if line.startswith("/"):
                    self._command(*line.split(maxsplit=1))
                else:
                    self.send(line)
            except VlcoreError as error:
                echo(f"error: {error}", err=True)

    def send(self, message: str) -> None:
        """Stream the response to stdout, and its speed to stderr."""
        from vlcore.errors import ImageError, PromptError, VideoError

        if not is_valid_text(message):
            raise PromptError(
                f"the message contains bytes that are not valid {_input_encoding()}: "
                f"{message:.200}. Check the encoding of the terminal or the file that it comes from"
            )
        prompt: Any = (message, self._media) if self._media else message
        chunks = self._pipe.stream_chat(prompt, self._session, self._config)
        num_tokens, started, first, is_whole = 0, time.perf_counter(), None, False
        try:
            for chunk in chunks:
                first = first or time.perf_counter()
                num_tokens = chunk.generate_token_len
                echo(chunk.text, end="")
            self._media = []  # the session holds them now
            is_whole = True
        except (ImageError, VideoError):
            self._media = []  # a bad image must not fail the next message too
            raise
        except KeyboardInterrupt:
            echo(" …", end="")
        finally:
            chunks.close()
        echo()
        if first is None:
            return
        if is_whole and self._draw is not None:
            self._draw_regions(self._draw)
        seconds = time.perf_counter() - first
        speed = f"{(num_tokens - 1) / seconds:.1f} tokens/s" if num_tokens > 1 else "-"
        echo(f"[{num_tokens} tokens, {speed}, first after {first - started:.2f} s]", err=True)

    def _draw_regions(self, file: Path) -> None:
        """Draw the regions that the last response refers to."""
        from vlcore.errors import OptionError
        from vlcore.prompts.regions import draw_regions

        response, conversation = self._session.response, self._session.conversation
        assert response is not None  # noqa: S101  (for mypy: drawing follows an answer)
        assert conversation is not None  # noqa: S101
        images = [
            cast("Image.Image", conversation.images[slot.index])  # a session keeps them decoded
            for slot in conversation.slots
            if not slot.is_video
        ]
        if not images:
            echo(f"the conversation has no image: {file} was not written", err=True)
            return
        image = images[-1]
        regions = self._pipe.template.regions(response.text, image.size)
        if not regions:
            echo(f"the response refers to no region: {file} was not written", err=True)
            return
        try:
            draw_regions(image, regions).save(file)
        except OSError as error:
            raise OptionError(f"--draw cannot write {str(file)!r}: {error}") from error
        echo(f"{file} shows the regions of the response ({len(regions)})", err=True)

    def _command(self, command: str, argument: str = "") -> None:
        from vlcore.inference.response import Session
        from vlcore.media.image import load_image
        from vlcore.media.undecoded_video import UndecodedVideo

        if command == "/image" and argument:
            images = read_image_argument(argument)
            for image in images:
                load_image(image)
            self._media += images
            for image in images:
                echo(f"{image} is attached to the next message", err=True)
        elif command == "/video" and argument:
            videos = read_image_argument(argument)
            self._media += map(UndecodedVideo, videos)
            for video in videos:
                echo(f"{video} is attached to the next message", err=True)
        elif command == "/reset":
            self._session, self._media = Session(), []
            echo("started a new conversation", err=True)
        elif command == "/help":
            echo(_HELP, err=True)
        else:
            echo(f"unknown command: {command} {argument}\n{_HELP}", err=True)


def _input_encoding() -> str:
    return getattr(sys.stdin, "encoding", None) or "utf-8"

"""``vlcore chat``: ask a model about pictures, once or in a conversation."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vlcore.cli.options import (
    Device,
    Dtype,
    EngineName,
    Images,
    Model,
    Plugin,
    Revision,
    TemplateName,
    Weights,
)

if TYPE_CHECKING:
    from PIL import Image

    from vlcore.inference.pipeline import Pipeline
    from vlcore.inference.response import Session
    from vlcore.prompts.chat_template import ChatTemplate

_HELP = """\
/image PATH|URL   show the model a picture with the next question
/reset            forget the conversation
/help             show this
/exit             leave (so does the end of input)
Ctrl-C stops an answer."""


def chat(
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(help="A question; without one, a conversation starts.")
    ] = None,
    image: Images = None,
    plugin: Plugin = None,
    chat_template: TemplateName = None,
    engine: EngineName = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    weights: Weights = None,
    revision: Revision = None,
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.")] = 512,
    temperature: Annotated[
        float | None, typer.Option(help="Sample at this temperature; the default is greedy.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among this probability; needs --temperature.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Makes sampling repeatable; needs --temperature.")
    ] = None,
    draw: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw what the answer points at on the last picture, into this file.",
        ),
    ] = None,
) -> None:
    """Ask a model about pictures: one question, or a conversation without PROMPT."""
    from vlcore.engines.generation import GenerationConfig
    from vlcore.engines.transformers.engine import TransformersEngineConfig
    from vlcore.inference.factory import pipeline

    sampling = {"temperature": temperature, "top_p": top_p, "random_seed": seed}
    options: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    if options and temperature is None:
        raise typer.BadParameter("--top-p and --seed sample, which needs --temperature")
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=temperature is not None, **options
    )
    template: str | ChatTemplate | None = chat_template
    if draw is not None:
        if prompt is not None and not image:
            raise typer.BadParameter("--draw draws on a picture, which needs --image")
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
    ) as pipe:
        conversation = _Conversation(pipe, config, list(image or []), draw)
        if prompt is not None:
            conversation.ask(prompt)
        else:
            conversation.run()
        stats = pipe.encoder_stats()
        if stats.num_images:
            typer.echo(f"[{stats}]", err=True)


def _drawing_template(
    draw: Path, model: str, plugin: str | None, name: str | None, revision: str | None
) -> ChatTemplate:
    """Load the template, and see before any weight is read that there will be a drawing.

    Raises:
        OptionError: the file cannot be written, or the model's answers point at nothing.
    """
    from PIL import Image

    from vlcore.errors import OptionError
    from vlcore.plugins.stages import ModelStages

    writable = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE
    }
    if draw.suffix.lower() not in writable or not draw.parent.is_dir():
        raise OptionError(
            f"--draw needs the name of a picture, such as answer.png, in a directory that is "
            f"there; it is {str(draw)!r}"
        )
    stages = ModelStages(model, plugin=plugin, revision=revision)
    template = stages.chat_template(name)
    if not template.finds_regions:
        raise OptionError(
            f"--draw needs a model whose answers point at regions of a picture; "
            f"{stages.plugin.info.distribution} knows of none in the answers of {model}"
        )
    return template


class _Conversation:
    """Questions and answers at a terminal."""

    def __init__(
        self, pipe: Pipeline, config: Any, images: list[str], draw: Path | None = None
    ) -> None:
        from vlcore.inference.response import Session

        self._pipe = pipe
        self._config = config
        self._images = images
        self._draw = draw
        self._session: Session = Session()

    def run(self) -> None:
        """Answer until the input ends."""
        from vlcore.errors import VlcoreError

        with suppress(ImportError):  # gives input() line editing and recall, where there is one
            import readline  # noqa: F401
        typer.echo("Ask away; /help lists the commands.", err=True)
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                typer.echo("", err=True)
                continue
            try:
                if not line:
                    continue
                if line in ("/exit", "/quit"):
                    return
                if line.startswith("/"):
                    self._command(*line.split(maxsplit=1))
                else:
                    self.ask(line)
            except VlcoreError as error:
                typer.echo(f"error: {error}", err=True)

    def ask(self, question: str) -> None:
        """Stream the answer to stdout, and how fast it came to stderr."""
        from vlcore.errors import ImageError

        prompt: Any = (question, self._images) if self._images else question
        pieces = self._pipe.stream_chat(prompt, self._session, self._config)
        num_tokens, started, first, is_whole = 0, time.perf_counter(), None, False
        try:
            for piece in pieces:
                first = first or time.perf_counter()
                num_tokens = piece.generate_token_len
                typer.echo(piece.text, nl=False)
            self._images = []  # they are part of the session now
            is_whole = True
        except ImageError:
            self._images = []  # a picture that cannot be shown must not spoil the next question
            raise
        except KeyboardInterrupt:
            typer.echo(" …", nl=False)
        finally:
            pieces.close()
        typer.echo("")
        if first is None:
            return
        if is_whole and self._draw is not None:
            self._draw_answer(self._draw)
        seconds = time.perf_counter() - first
        speed = f"{(num_tokens - 1) / seconds:.1f} tokens/s" if num_tokens > 1 else "–"
        typer.echo(f"[{num_tokens} tokens, {speed}, first after {first - started:.2f} s]", err=True)

    def _draw_answer(self, file: Path) -> None:
        """Draw what the last answer points at."""
        from vlcore.errors import OptionError
        from vlcore.prompts.regions import draw_regions

        response, conversation = self._session.response, self._session.conversation
        assert response is not None
        assert conversation is not None
        if not conversation.images:
            typer.echo(f"there is no picture: {file} is not written", err=True)
            return
        picture = cast("Image.Image", conversation.images[-1])  # a session keeps them decoded
        regions = self._pipe.template.regions(response.text, picture.size)
        if not regions:
            typer.echo(f"the answer points at nothing: {file} is not written", err=True)
            return
        try:
            draw_regions(picture, regions).save(file)
        except OSError as error:
            raise OptionError(f"--draw cannot write {str(file)!r}: {error}") from error
        typer.echo(f"{file} shows what the answer points at ({len(regions)})", err=True)

    def _command(self, command: str, argument: str = "") -> None:
        from vlcore.inference.response import Session
        from vlcore.media.image import load_image

        if command == "/image" and argument:
            load_image(argument)
            self._images.append(argument)
            typer.echo(f"{argument} goes with the next question", err=True)
        elif command == "/reset":
            self._session, self._images = Session(), []
            typer.echo("the conversation is forgotten", err=True)
        elif command == "/help":
            typer.echo(_HELP, err=True)
        else:
            typer.echo(f"unknown command: {command} {argument}\n{_HELP}", err=True)

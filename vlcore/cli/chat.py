"""``vlcore chat``: ask a model about pictures, once or in a conversation."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vlcore.pipeline import Pipeline
    from vlcore.response import Session

_HELP = """\
/image PATH|URL   show the model a picture with the next question
/reset            forget the conversation
/help             show this
/exit             leave (so does the end of input)
Ctrl-C stops an answer."""


def chat(
    model: Annotated[str, typer.Argument(help="A checkpoint directory or hub id.")],
    prompt: Annotated[
        str | None, typer.Argument(help="A question; without one, a conversation starts.")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", "-i", help="A picture (path or URL); may be given several times."),
    ] = None,
    plugin: Annotated[
        str | None, typer.Option(help="The plugin to use where several serve the model.")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="One of the plugin's templates, by name.")
    ] = None,
    engine: Annotated[str, typer.Option(help="auto or transformers.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Of a hub repository.")] = None,
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
) -> None:
    """Ask a model about pictures: one question, or a conversation without PROMPT."""
    from vlcore.engines.generation import GenerationConfig
    from vlcore.pipeline import pipeline

    sampling = {"temperature": temperature, "top_p": top_p, "random_seed": seed}
    options: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    if options and temperature is None:
        raise typer.BadParameter("--top-p and --seed sample, which needs --temperature")
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=temperature is not None, **options
    )
    with pipeline(
        model,
        engine=engine,
        device=device,
        dtype=dtype,
        plugin=plugin,
        chat_template=chat_template,
        revision=revision,
        progress=sys.stderr.isatty(),
    ) as pipe:
        conversation = _Conversation(pipe, config, list(image or []))
        if prompt is not None:
            conversation.ask(prompt)
        else:
            conversation.run()


class _Conversation:
    """Questions and answers at a terminal."""

    def __init__(self, pipe: Pipeline, config: Any, images: list[str]) -> None:
        from vlcore.response import Session

        self._pipe = pipe
        self._config = config
        self._images = images
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
        num_tokens, started, first = 0, time.perf_counter(), None
        try:
            for piece in pieces:
                first = first or time.perf_counter()
                num_tokens = piece.generate_token_len
                typer.echo(piece.text, nl=False)
            self._images = []  # they are part of the session now
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
        seconds = time.perf_counter() - first
        speed = f"{(num_tokens - 1) / seconds:.1f} tokens/s" if num_tokens > 1 else "–"
        typer.echo(f"[{num_tokens} tokens, {speed}, first after {first - started:.2f} s]", err=True)

    def _command(self, command: str, argument: str = "") -> None:
        from vlcore.media import load_image
        from vlcore.response import Session

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

"""``vlcore explain``: a prompt as the model reads it, token by token."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlcore.cli.options import Images, Model, Plugin, Revision, TemplateName, Videos
from vlcore.cli.terminal import echo

if TYPE_CHECKING:
    from vlcore.cli.explain.explanation import Explanation, RowsLine, TokenLine


def explain(
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(help="Message to explain. Omitted with --messages.")
    ] = None,
    image: Images = None,
    video: Videos = None,
    messages: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="JSON file with OpenAI-style messages, of several turns, with images and videos, "
            "or with a request that has messages. - reads standard input.",
        ),
    ] = None,
    plugin: Plugin = None,
    chat_template: TemplateName = None,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the prompt of a message or a conversation token by token, as the model reads it."""
    from vlcore.cli.explain.explanation import explain
    from vlcore.cli.explain.messages_file import read_messages
    from vlcore.media.undecoded_video import UndecodedVideo
    from vlcore.plugins.stages import ModelStages

    if (prompt is None) == (messages is None):
        raise typer.BadParameter("either a message or --messages is needed")
    media = [*(image or ()), *map(UndecodedVideo, video or ())]
    if messages is not None and media:
        raise typer.BadParameter("--messages has its own images: leave out --image and --video")
    user_prompt: Any = (prompt, media) if media else prompt
    if messages is not None:
        user_prompt = read_messages(messages)
    stages = ModelStages(model, plugin=plugin, revision=revision)
    explanation = explain(stages, user_prompt, chat_template=chat_template)
    if as_json:
        echo(json.dumps(_as_json(explanation), indent=2))
    else:
        _print(explanation)


def _as_json(explanation: Explanation) -> dict[str, object]:
    return {
        "model": explanation.model,
        "plugin": explanation.plugin,
        "plugin_version": explanation.plugin_version,
        "template": explanation.template,
        "prompt": [_line_as_json(line) for line in explanation.lines],
        "images": [
            {
                "source": image.source,
                "width": image.width,
                "height": image.height,
                "num_rows": image.num_rows,
                "was_encoded": image.was_encoded,
            }
            | ({} if image.num_frames is None else {"num_frames": image.num_frames})
            for image in explanation.images
        ],
        "stop": {
            "token_ids": list(explanation.stop_token_ids),
            "texts": list(explanation.stop_strings),
        },
        "num_control_tokens": explanation.num_special_tokens,
        "num_text_tokens": explanation.num_text_tokens,
        "num_image_rows": explanation.num_image_rows,
        "length": explanation.length,
        "context_length": explanation.context_length,
        "num_left": explanation.num_left,
    }


def _line_as_json(line: TokenLine | RowsLine) -> dict[str, object]:
    from vlcore.cli.explain.explanation import TokenLine

    if isinstance(line, TokenLine):
        return {
            "kind": line.kind,
            "position": line.position,
            "token_id": line.token_id,
            "piece": line.entry,
            "text": line.text,
        }
    return {
        "kind": "image",
        "position": line.start,
        "image": line.image,
        "first_row": line.first_row,
        "last_row": line.last_row,
        "num_rows": line.num_rows,
    }


def _print(explanation: Explanation) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{explanation.model}, {explanation.plugin} {explanation.plugin_version}, "
        f"{explanation.template}\n"
    )
    console.print(_table(explanation), soft_wrap=False)
    console.print()
    for index, image in enumerate(explanation.images):
        encoded = ", encoded to determine their number" if image.was_encoded else ""
        frames = "" if image.num_frames is None else f"{image.num_frames} frames of "
        console.print(
            f"{image.kind} {index}  {image.source}, {frames}{image.width} x {image.height}, "
            f"{image.num_rows} embeddings{encoded}"
        )
    ends = [f"{text} ({token_id})" for token_id, text in explanation.stop_token_ids.items()]
    ends += [f"the string {text!r}" for text in explanation.stop_strings]
    console.print(f"stops at {', '.join(ends) or 'the maximum number of tokens only'}")
    console.print(
        f"length   {explanation.length} = {explanation.num_special_tokens} special tokens + "
        f"{explanation.num_text_tokens} text tokens + {explanation.num_image_rows} image embeddings"
    )
    left = f"{explanation.num_left} left for the response"
    if not explanation.num_left:
        left = "the prompt is TOO LONG: shorten the text, or remove images or videos"
    console.print(f"context  {explanation.context_length}, {left}")


def _table(explanation: Explanation) -> Any:
    from rich.table import Table
    from rich.text import Text

    from vlcore.cli.explain.explanation import TokenLine

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("position", justify="right")
    table.add_column("token", justify="right")
    table.add_column("kind")
    table.add_column("text", overflow="fold")
    for line in explanation.lines:
        if isinstance(line, TokenLine):
            style = {"control": "bold cyan", "unknown": "bold red"}.get(line.kind, "")
            shown = Text(_visible(line), style)
            table.add_row(str(line.position), str(line.token_id), Text(line.kind, style), shown)
        else:
            image = explanation.images[line.image]
            table.add_row(
                f"{line.start}–{line.stop - 1}",
                "",
                Text(f"{image.kind} {line.image}", "bold green"),
                Text(f"embeddings {line.first_row}–{line.last_row} of {image.num_rows}", "green"),
            )
    return table


def _visible(line: TokenLine) -> str:
    """A token's text with visible spaces, line breaks and incomplete UTF-8 bytes."""
    if line.text is None:
        return "".join(f"<0x{byte:02X}>" for byte in line.raw)
    return "".join(
        "␣" if character == " " else character if character.isprintable() else _escape(character)
        for character in line.text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")

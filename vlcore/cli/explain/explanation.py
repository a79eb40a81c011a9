"""A prompt as its plugin makes it: every token and every run of image rows, with its place.

The language model is described, never loaded. The vision model is loaded where there are
pictures, and runs only on those whose number of rows its ``preprocess`` does not give.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from vlcore.inference.user_input import parse_prompt
from vlcore.media.image import load_image
from vlcore.media.policy import DEFAULT_LIMITS, ImageLimits
from vlcore.media.source import describe
from vlcore.plugins.stages import ModelStages
from vlcore.prompts.chat_template import ChatTemplate, write_prompt
from vlcore.prompts.tokenization import ImageLayout, PromptTokenizer, TokenizedPrompt
from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.model import ImageInputs, VisionModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenKind = Literal["text", "control", "unknown"]
"""``"unknown"`` stands where text has no token of its own."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class TokenLine:
    """One token."""

    position: int
    token_id: int
    kind: TokenKind
    piece: str
    """The vocabulary's own entry."""
    raw: bytes
    """What it stands for, in UTF-8."""

    @property
    def text(self) -> str | None:
        """What it stands for; ``None`` of a part of a character that takes several tokens."""
        try:
            return self.raw.decode("utf-8")
        except UnicodeDecodeError:
            return None


@dataclass(frozen=True)
class RowsLine:
    """A run of an image's rows at positions ``start <= i < stop``."""

    start: int
    stop: int
    image: int
    first_row: int

    @property
    def num_rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.start

    @property
    def last_row(self) -> int:
        """The image's row at its end; ``first_row - 1`` of a run without rows."""
        return self.first_row + self.num_rows - 1


@dataclass(frozen=True)
class ExplainedImage:
    """A picture, as it was loaded."""

    source: str
    width: int
    height: int
    num_rows: int
    was_encoded: bool
    """Whether the vision model had to run to tell the number of rows."""


@dataclass(frozen=True)
class Explanation:
    """A prompt, line by line, and what ends its answer."""

    model: str
    plugin: str
    plugin_version: str
    template: str
    lines: tuple[TokenLine | RowsLine, ...]
    images: tuple[ExplainedImage, ...]
    stop_token_ids: Mapping[int, str]
    """The tokens that end an answer, each with its text."""
    stop_texts: tuple[str, ...]
    """Stop texts of the template that are no tokens, and are looked for in the answer's text."""
    context_length: int

    @property
    def num_control_tokens(self) -> int:
        """Tokens of the template that are special, and those before every text, such as BOS."""
        return sum(isinstance(ln, TokenLine) and ln.kind == "control" for ln in self.lines)

    @property
    def num_text_tokens(self) -> int:
        """All other tokens."""
        return sum(isinstance(ln, TokenLine) and ln.kind != "control" for ln in self.lines)

    @property
    def num_image_rows(self) -> int:
        """Rows of all images."""
        return sum(line.num_rows for line in self.lines if isinstance(line, RowsLine))

    @property
    def length(self) -> int:
        """Tokens and rows: how much of the context the prompt takes."""
        return self.num_control_tokens + self.num_text_tokens + self.num_image_rows

    @property
    def num_left(self) -> int:
        """How many tokens the context leaves for the answer; none of a prompt that is too long."""
        return max(0, self.context_length - self.length)


def explain(
    stages: ModelStages,
    prompt: Any,
    *,
    chat_template: str | ChatTemplate | None = None,
    image_limits: ImageLimits = DEFAULT_LIMITS,
) -> Explanation:
    """Lay a prompt out as the model would read it, without the language model's weights.

    Args:
        stages: the checkpoint and its plugin.
        prompt: a text, ``(text, image or images)``, or OpenAI-style messages.
        chat_template: the name of one of the plugin's templates, or a template; ``None`` for the
            checkpoint's own.
        image_limits: what a picture may cost.

    Raises:
        PromptError: the prompt cannot be read or does not suit the template.
        ImageError: a picture cannot be loaded or preprocessed.
        PluginError: the plugin does not keep its contract.
    """
    conversation = parse_prompt(prompt)
    language_model = stages.language_model()
    template = (
        chat_template
        if isinstance(chat_template, ChatTemplate)
        else stages.chat_template(chat_template)
    )
    parts = write_prompt(template, conversation.messages)
    tokenizer = language_model.tokenizer()
    pictures = [load_image(source, image_limits) for source in conversation.images]
    laid_out: list[tuple[ImageLayout, bool]] = []
    if pictures:  # a prompt without any needs no vision model
        vision_model = stages.vision_model()
        laid_out = asyncio.run(_lay_out(vision_model, pictures, conversation.image_options))
    layouts = [layout for layout, _ in laid_out]
    prompt_tokenizer = PromptTokenizer(tokenizer)
    built = prompt_tokenizer.build(parts, layouts, template)
    control = {token_id for token_id, _ in prompt_tokenizer.special_tokens.values()}
    pieces = Pieces(tokenizer, control)
    token_stops, text_stops = _stops(template, tokenizer, language_model.end_token_ids)
    return Explanation(
        model=stages.checkpoint.name,
        plugin=stages.plugin.info.distribution,
        plugin_version=stages.plugin.info.version,
        template=type(template).__name__,
        lines=tuple(_lines(built, pieces)),
        images=tuple(
            ExplainedImage(_name(source), *picture.size, layout.num_rows, was_encoded)
            for source, picture, (layout, was_encoded) in zip(
                conversation.images, pictures, laid_out, strict=True
            )
        ),
        stop_token_ids=token_stops,
        stop_texts=text_stops,
        context_length=language_model.context_length,
    )


async def _lay_out(
    vision_model: VisionModel, pictures: Sequence[Image.Image], options: list[Mapping[str, Any]]
) -> list[tuple[ImageLayout, bool]]:
    """Tell each picture's layout, and whether it had to be encoded for it."""
    laid_out = []
    async with ImageEncoder(vision_model, cache_bytes=0) as encoder:
        for prepared in await encoder.prepare(pictures, options):
            if isinstance(prepared.inputs, ImageInputs) and prepared.num_rows is not None:
                laid_out.append((ImageLayout(prepared.num_rows, prepared.inputs.layout), False))
            else:
                (encoded,) = await encoder.encode_prepared([prepared])
                laid_out.append((ImageLayout(len(encoded.rows), encoded.layout), True))
    return laid_out


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str) and len(source) <= 200 else describe(source)


def _lines(prompt: TokenizedPrompt, pieces: Pieces) -> Iterator[TokenLine | RowsLine]:
    position = 0
    for span in prompt.spans:
        yield from _token_lines(prompt.token_ids, range(position, span.start), pieces)
        yield RowsLine(span.start, span.stop, span.image, span.first_row)
        position = span.stop
    yield from _token_lines(prompt.token_ids, range(position, len(prompt.token_ids)), pieces)


def _token_lines(token_ids: Sequence[int], positions: range, pieces: Pieces) -> Iterator[TokenLine]:
    for position in positions:
        yield pieces.line(position, token_ids[position])


def _stops(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, end_token_ids: Sequence[int]
) -> tuple[dict[int, str], tuple[str, ...]]:
    """Tell the end tokens, with their texts, from the stop texts that are no tokens."""
    added = {token.content: int(i) for i, token in tokenizer.added_tokens_decoder.items()}
    ids = [*end_token_ids, tokenizer.eos_token_id, *map(added.get, template.stop)]
    tokens = {i: str(tokenizer.convert_ids_to_tokens(i)) for i in ids if isinstance(i, int)}
    return tokens, tuple(text for text in template.stop if text not in added)


class Pieces:
    """The entries of a tokenizer's vocabulary, and the text that each stands for.

    Args:
        tokenizer: whose vocabulary it is.
        control: the ids of its control tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: set[int]) -> None:
        self._tokenizer = tokenizer
        self._control = control
        self._added = {int(i): t.content for i, t in tokenizer.added_tokens_decoder.items()}
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        self._is_byte_level = "ByteLevel" in json.dumps(spec["decoder"])
        # What the model behind the tokenizer gives for text that it has no token for.
        unknown = spec["model"].get("unk_id")
        if unk_token := spec["model"].get("unk_token"):
            unknown = tokenizer.backend_tokenizer.token_to_id(unk_token)
        self._unknown = unknown

    def line(self, position: int, token_id: int) -> TokenLine:
        """Describe the token at a position."""
        piece = str(self._tokenizer.convert_ids_to_tokens(token_id))
        kind: TokenKind = "text"
        if token_id == self._unknown:
            kind = "unknown"
        elif token_id in self._control:
            kind = "control"
        return TokenLine(position, token_id, kind, piece, self._bytes(token_id, piece))

    def _bytes(self, token_id: int, piece: str) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode("utf-8")
        if self._is_byte_level and self._byte_of_character.keys() >= set(piece):
            return bytes(self._byte_of_character[character] for character in piece)
        if found := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return piece.replace("▁", " ").encode("utf-8")

    @cached_property
    def _byte_of_character(self) -> dict[str, int]:
        """The characters that stand for bytes in a byte-level vocabulary.

        Source: GPT-2's ``bytes_to_unicode``.
        """
        shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
        shown += range(ord("®"), ord("ÿ") + 1)
        hidden = [byte for byte in range(256) if byte not in shown]
        table = {chr(byte): byte for byte in shown}
        return table | {chr(256 + number): byte for number, byte in enumerate(hidden)}

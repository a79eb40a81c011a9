"""A prompt as its plugin builds it: every token and every run of image embeddings.

The language model is never loaded. The vision model is loaded if there are images, and encodes
only those for which its ``preprocess`` does not state the number of embeddings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from vlcore.inference.prompt_builder import PromptBuilder
from vlcore.inference.user_input import parse_prompt
from vlcore.media.policy import DEFAULT_LIMITS, ImageLimits
from vlcore.media.source import describe
from vlcore.media.undecoded_video import UndecodedVideo
from vlcore.plugins.stages import ModelStages
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.prompts.tokenization import TokenizedPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenKind = Literal["text", "control", "unknown"]
"""``"unknown"`` is text that the vocabulary has no token for."""

_BYTE_ENTRY = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class TokenLine:
    """One token."""

    position: int
    token_id: int
    kind: TokenKind
    entry: str
    """The entry of the vocabulary."""
    raw: bytes
    """The bytes of the token's text, in UTF-8."""

    @property
    def text(self) -> str | None:
        """The token's text; ``None`` if the token is only a part of a character."""
        try:
            return self.raw.decode("utf-8")
        except UnicodeDecodeError:
            return None


@dataclass(frozen=True)
class RowsLine:
    """A run of image embeddings at positions ``start <= i < stop``."""

    start: int
    stop: int
    image: int
    first_row: int

    @property
    def num_rows(self) -> int:
        """The number of embeddings in the run."""
        return self.stop - self.start

    @property
    def last_row(self) -> int:
        """Index of the last embedding; ``first_row - 1`` if the run is empty."""
        return self.first_row + self.num_rows - 1


@dataclass(frozen=True)
class ExplainedImage:
    """An image or video as it was loaded."""

    source: str
    width: int
    height: int
    num_frames: int | None
    """Number of frames that the model receives; ``None`` for an image."""
    num_rows: int
    was_encoded: bool
    """Whether the image had to be encoded to determine the number of embeddings."""

    @property
    def kind(self) -> Literal["image", "video"]:
        """What it is."""
        return "image" if self.num_frames is None else "video"


@dataclass(frozen=True)
class Explanation:
    """A prompt, line by line, and what stops its response."""

    model: str
    plugin: str
    plugin_version: str
    template: str
    lines: tuple[TokenLine | RowsLine, ...]
    images: tuple[ExplainedImage, ...]
    stop_token_ids: Mapping[int, str]
    """The tokens that end a response, each with its text."""
    stop_strings: tuple[str, ...]
    """Stop strings of the template that are not single tokens."""
    context_length: int

    @property
    def num_special_tokens(self) -> int:
        """Number of special tokens, such as BOS and those of the template."""
        return sum(isinstance(ln, TokenLine) and ln.kind == "control" for ln in self.lines)

    @property
    def num_text_tokens(self) -> int:
        """Number of all other tokens."""
        return sum(isinstance(ln, TokenLine) and ln.kind != "control" for ln in self.lines)

    @property
    def num_image_rows(self) -> int:
        """Number of embeddings of all images and videos."""
        return sum(line.num_rows for line in self.lines if isinstance(line, RowsLine))

    @property
    def length(self) -> int:
        """Length of the prompt in tokens and image embeddings."""
        return self.num_special_tokens + self.num_text_tokens + self.num_image_rows

    @property
    def num_left(self) -> int:
        """Number of tokens left for the response; 0 if the prompt is too long."""
        return max(0, self.context_length - self.length)


def explain(
    stages: ModelStages,
    prompt: Any,
    *,
    chat_template: str | ChatTemplate | None = None,
    image_limits: ImageLimits = DEFAULT_LIMITS,
) -> Explanation:
    """Build a prompt as the model would read it, without the weights of the language model.

    Args:
        stages: the checkpoint and its plugin.
        prompt: a text, a pair of a text and an image, a video or a list of them, or OpenAI-style
            messages.
        chat_template: the name of one of the plugin's templates, or a template; ``None`` for the
            checkpoint's own.
        image_limits: limits of each image.

    Raises:
        PromptError: the prompt cannot be read or does not suit the template.
        ImageError: an image cannot be loaded or preprocessed.
        VideoError: a video cannot be loaded or preprocessed, or the model takes no videos.
        PluginError: the plugin breaks its contract.
    """
    conversation = parse_prompt(prompt)
    builder = PromptBuilder(stages, chat_template, image_limits)
    language_model, template = builder.language_model, builder.template
    built, images = builder.build_measured(conversation)
    tokenizer = builder.transformers_tokenizer
    special = {token_id for token_id, _ in builder.tokenizer.special_tokens.values()}
    vocabulary = VocabularyEntries(tokenizer, special)
    token_stops, text_stops = _stops(template, tokenizer, language_model.end_token_ids)
    return Explanation(
        model=stages.checkpoint.name,
        plugin=stages.plugin.info.distribution,
        plugin_version=stages.plugin.info.version,
        template=type(template).__name__,
        lines=tuple(_lines(built, vocabulary)),
        images=tuple(
            ExplainedImage(
                _name(source),
                *image.size,
                image.num_frames,
                image.layout.num_rows,
                image.was_encoded,
            )
            for source, image in zip(conversation.images, images, strict=True)
        ),
        stop_token_ids=token_stops,
        stop_strings=text_stops,
        context_length=language_model.context_length,
    )


def _name(source: Any) -> str:
    source = source.source if isinstance(source, UndecodedVideo) else source
    return str(source) if isinstance(source, str) and len(source) <= 200 else describe(source)


def _lines(
    prompt: TokenizedPrompt, vocabulary: VocabularyEntries
) -> Iterator[TokenLine | RowsLine]:
    position = 0
    for span in prompt.spans:
        yield from _token_lines(prompt.token_ids, range(position, span.start), vocabulary)
        yield RowsLine(span.start, span.stop, span.image, span.first_row)
        position = span.stop
    yield from _token_lines(prompt.token_ids, range(position, len(prompt.token_ids)), vocabulary)


def _token_lines(
    token_ids: Sequence[int], positions: range, vocabulary: VocabularyEntries
) -> Iterator[TokenLine]:
    for position in positions:
        yield vocabulary.line(position, token_ids[position])


def _stops(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, end_token_ids: Sequence[int]
) -> tuple[dict[int, str], tuple[str, ...]]:
    """Separate the end tokens, with their texts, from the stop strings that are not tokens."""
    added = {token.content: int(i) for i, token in tokenizer.added_tokens_decoder.items()}
    ids = [*end_token_ids, tokenizer.eos_token_id, *map(added.get, template.stop)]
    tokens = {i: str(tokenizer.convert_ids_to_tokens(i)) for i in ids if isinstance(i, int)}
    return tokens, tuple(text for text in template.stop if text not in added)


class VocabularyEntries:
    """The entries of a tokenizer's vocabulary, and the text of each.

    Args:
        tokenizer: the tokenizer whose vocabulary is described.
        special: the ids of its special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: set[int]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._added = {int(i): t.content for i, t in tokenizer.added_tokens_decoder.items()}
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        self._is_byte_level = "ByteLevel" in json.dumps(spec["decoder"])
        # The id that the tokenizer gives text without a token of its own.
        unknown = spec["model"].get("unk_id")
        if unk_token := spec["model"].get("unk_token"):
            unknown = tokenizer.backend_tokenizer.token_to_id(unk_token)
        self._unknown = unknown

    def line(self, position: int, token_id: int) -> TokenLine:
        """Describe the token at a position."""
        entry = str(self._tokenizer.convert_ids_to_tokens(token_id))
        kind: TokenKind = "text"
        if token_id == self._unknown:
            kind = "unknown"
        elif token_id in self._special:
            kind = "control"
        return TokenLine(position, token_id, kind, entry, self._bytes(token_id, entry))

    def _bytes(self, token_id: int, entry: str) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode("utf-8")
        if self._is_byte_level and self._byte_of_character.keys() >= set(entry):
            return bytes(self._byte_of_character[character] for character in entry)
        if found := _BYTE_ENTRY.fullmatch(entry):
            return bytes([int(found[1], 16)])
        return entry.replace("▁", " ").encode("utf-8")

    @cached_property
    def _byte_of_character(self) -> dict[str, int]:
        """The byte of each character in a byte-level vocabulary.

        Source: GPT-2's ``bytes_to_unicode``.
        """
        shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
        shown += range(ord("®"), ord("ÿ") + 1)
        hidden = [byte for byte in range(256) if byte not in shown]
        table = {chr(byte): byte for byte in shown}
        return table | {chr(256 + number): byte for number, byte in enumerate(hidden)}

"""``PromptTokenizer``: turns prompt parts into token ids and the spans of image embeddings.

Adjacent texts of users and of the template are joined before they are tokenized, as the reference
implementations do. Only special tokens and images split the text. Special tokens are recognized
only in the template's text: the texts of messages are tokenized without them.

This module does not know about models.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlcore.errors import PluginContractError, PromptError
from vlcore.prompts.chat_template import ChatTemplate, expand_slot
from vlcore.prompts.messages import Control, ImageSlot, PromptPart, Rows, Text

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerBase

_BRACKETED = re.compile(r"[<\[].*[>\]]", re.DOTALL)


@dataclass(frozen=True)
class ImageLayout:
    """Number and layout of the embeddings of one image, which its slot in the prompt depends on."""

    num_rows: int
    layout: Any = None


@dataclass(frozen=True)
class Span:
    """Token positions ``start <= i < stop`` that embeddings of an image fill."""

    start: int
    stop: int
    image: int
    """Index of the image in the request."""
    first_row: int
    """Index of the image's embedding at position ``start``."""


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the engines read it.

    The token ids within a span are a filler that every vocabulary has. Image embeddings take their
    place.
    """

    token_ids: tuple[int, ...]
    spans: tuple[Span, ...] = ()


class PromptTokenizer:
    """Turns prompt parts into token ids.

    Args:
        tokenizer: A transformers tokenizer. It is not modified, and not used after construction.

    Raises:
        PromptError: The tokenizer has no Rust backend, which is needed to tokenize texts without
            special tokens.
    """

    filler_id = 0

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise PromptError(
                "a tokenizer with a Rust backend (the tokenizers library) is needed; "
                f"{type(tokenizer).__name__} has none"
            )
        added: dict[int, AddedToken] = tokenizer.added_tokens_decoder
        self.special_tokens = {
            token.content: (token_id, token)
            for token_id, token in added.items()
            if token.special or _BRACKETED.fullmatch(token.content)
        }
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._prefix_ids = tuple(_ids_before_text(tokenizer))
        self._first, self._later = _plain_backends(backend, set(self.special_tokens))
        self._backend = backend

    def token_text(self, token_id: int) -> str:
        """Return the text of a token, with U+FFFD for an incomplete character."""
        token = self._backend.id_to_token(token_id) or ""
        if token.startswith("▁"):  # a space, which decoders strip at the beginning
            return token.replace("▁", " ")
        return self._backend.decode([token_id], skip_special_tokens=False)

    def build(
        self,
        parts: Sequence[PromptPart],
        images: Sequence[ImageLayout] = (),
        template: ChatTemplate | None = None,
    ) -> TokenizedPrompt:
        """Tokenize a prompt and reserve the positions of its image embeddings.

        Args:
            parts: Parts of the prompt.
            images: Layout of each image, by :attr:`ImageSlot.index`.
            template: Template that expands the slots; ``None`` for all embeddings in a row.

        Raises:
            PromptError: The images do not correspond one to one to the slots, or a text cannot be
                tokenized, such as one with a lone surrogate.
            PluginContractError: The expansion of a slot has another number of embeddings than the
                image.
        """
        _check_slots(parts, len(images))
        template = template or ChatTemplate()
        builder = _PromptBuilder(self, restarts_after_image=template.restarts_after_image)
        for part in parts:
            if isinstance(part, ImageSlot):
                image = images[part.index]
                expansion = expand_slot(template, part, image.layout, image.num_rows)
                builder.add_image(part.index, expansion, image.num_rows)
            else:
                builder.add(part)
        builder.flush()
        token_ids = builder.token_ids
        num_prefix = 0
        begins_with_prefix = token_ids[: len(self._prefix_ids)] == list(self._prefix_ids)
        if template.adds_prefix and not begins_with_prefix:
            token_ids = [*self._prefix_ids, *token_ids]
            num_prefix = len(self._prefix_ids)
        spans = tuple(
            Span(span.start + num_prefix, span.stop + num_prefix, span.image, span.first_row)
            for span in builder.spans
        )
        return TokenizedPrompt(tuple(token_ids), spans)

    def encode_plain(self, text: str, *, first: bool = True) -> list[int]:
        """Tokenize a text without recognizing special tokens in it.

        Args:
            text: Any text.
            first: Whether the text begins a prompt or follows an image. Some tokenizers then put a
                space before it.

        Raises:
            PromptError: The text is not valid Unicode, or the tokenizer failed on it.
        """
        backend = self._first if first else self._later
        try:
            # Unlike encode, this lets other threads run, and computes no offsets.
            ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except (TypeError, UnicodeEncodeError) as error:  # lone surrogates
            raise PromptError(f"{text[:80]!r} is not valid Unicode text: {error}") from error
        except BaseException as error:
            # A panic of Rust is not an Exception, and handlers of Exception would miss it.
            if type(error).__name__ != "PanicException":
                raise
            raise PromptError(
                f"the tokenizer failed on a text of {len(text)} characters, {text[:80]!r}: {error}"
            ) from error
        return ids


class _PromptBuilder:
    """Collects adjacent texts, and tokenizes them at the next special token or image."""

    def __init__(self, tokenizer: PromptTokenizer, *, restarts_after_image: bool) -> None:
        self._restarts_after_image = restarts_after_image
        self.token_ids: list[int] = []
        self.spans: list[Span] = []
        self._tokenizer = tokenizer
        self._texts: list[str] = []
        self._begins_chunk = True
        self._strip_left = False

    def add(self, part: Text | Control) -> None:
        if isinstance(part, Text):
            self._append(part.text)
            return
        end = 0
        for match in self._tokenizer._special_pattern.finditer(part.text):
            self._append(part.text[end : match.start()])
            token_id, token = self._tokenizer.special_tokens[match[0]]
            if token.lstrip:
                self._texts = ["".join(self._texts).rstrip()]
            self.flush()
            self.token_ids.append(token_id)
            self._strip_left = token.rstrip
            end = match.end()
        self._append(part.text[end:])

    def add_image(
        self, index: int, expansion: Sequence[Text | Control | Rows], num_rows: int
    ) -> None:
        num_added = 0
        for part in expansion:
            if not isinstance(part, Rows):
                self.add(part)
                continue
            self.flush()
            self._strip_left = False
            start = len(self.token_ids)
            self.token_ids += [self._tokenizer.filler_id] * part.num_rows
            self.spans.append(Span(start, start + part.num_rows, index, num_added))
            num_added += part.num_rows
            self._begins_chunk = self._restarts_after_image
        if num_added != num_rows:
            raise PluginContractError(
                f"the chat template's expand returned {num_added} embeddings (Rows) for image "
                f"{index}, which has {num_rows}"
            )

    def flush(self) -> None:
        if text := "".join(self._texts):
            self.token_ids += self._tokenizer.encode_plain(text, first=self._begins_chunk)
        self._texts = []
        self._begins_chunk = False

    def _append(self, text: str) -> None:
        if self._strip_left and text:
            text = text.lstrip()
            self._strip_left = not text
        self._texts.append(text)


def _check_slots(parts: Sequence[PromptPart], num_images: int) -> None:
    slots = [part.index for part in parts if isinstance(part, ImageSlot)]
    if sorted(slots) != list(range(num_images)):
        raise PromptError(
            f"the prompt has {len(slots)} image slot(s), for images {slots}, and the request has "
            f"{num_images} image(s): one image is needed for each slot"
        )


def _ids_before_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the special tokens, such as BOS, that are put before every text."""
    bare: list[int] = tokenizer("x", add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer("x")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def _plain_backends(backend: Tokenizer, special: set[str]) -> tuple[Tokenizer, Tokenizer]:
    """Copy a tokenizer without its special tokens.

    The special tokens keep their ids, under random names that no user can type.

    Returns:
        The tokenizer for text that begins a prompt or follows an image, and for other text.
    """
    from tokenizers import Tokenizer

    secret = secrets.token_hex(16)
    names = {text: f"{secret}{number}" for number, text in enumerate(special)}
    spec = json.loads(backend.to_str())
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    spec["post_processor"] = spec["truncation"] = spec["padding"] = None
    _rename(spec["model"], names)
    first = Tokenizer.from_str(json.dumps(spec))
    pre_tokenizer = spec["pre_tokenizer"] or {}
    for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
            return first, Tokenizer.from_str(json.dumps(spec))
    return first, first


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename entries of a tokenizer's vocabulary, and remove the merges that result in them."""
    if model["type"] == "Unigram":
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
        return
    if names.keys().isdisjoint(model["vocab"]):  # they are added tokens
        return
    model["vocab"] = {
        names.get(token, token): token_id for token, token_id in model["vocab"].items()
    }
    model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [
            (left, right)
            for left, right in pairs
            if names.keys().isdisjoint((left, right, left + right))
        ]

"""Prompt parts and image rows in, token ids and spans out.

Adjacent texts are joined before they are tokenised, whoever wrote them, as the releases do; only
control tokens and images split the text. Control tokens are recognised in the template's text
alone: what a user writes goes through a tokenizer that does not know them.

Knows nothing of models.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlcore.errors import PluginContractError, PromptError
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.prompts.messages import Control, ImageSlot, PromptPart, Rows, Text

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerBase

_BRACKETED = re.compile(r"[<\[].*[>\]]", re.DOTALL)


@dataclass(frozen=True)
class ImageLayout:
    """What the prompt needs to know of an image."""

    num_rows: int
    layout: Any = None


@dataclass(frozen=True)
class Span:
    """Positions ``start <= i < stop`` of the token ids that rows of an image fill."""

    start: int
    stop: int
    image: int
    """Which image, by the order of its rows in the request."""
    first_row: int
    """The image's row at position ``start``."""


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as an engine takes it.

    The ids under a span are a filler that is in every vocabulary; rows replace them.
    """

    token_ids: tuple[int, ...]
    spans: tuple[Span, ...] = ()


class PromptTokenizer:
    """Turns prompt parts into token ids.

    Args:
        tokenizer: a transformers tokenizer. It is read, not changed, and not called afterwards.

    Raises:
        PromptError: the tokenizer has no Rust backend, so that control tokens cannot be kept out
            of a user's text.
    """

    filler_id = 0

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise PromptError(
                f"a tokenizer with a Rust backend (tokenizers library) is needed; "
                f"{type(tokenizer).__name__} has none"
            )
        added: dict[int, AddedToken] = tokenizer.added_tokens_decoder
        self.control_tokens = {
            token.content: (token_id, token)
            for token_id, token in added.items()
            if token.special or _BRACKETED.fullmatch(token.content)
        }
        longest_first = sorted(self.control_tokens, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._prefix_ids = tuple(_ids_before_text(tokenizer))
        self._first, self._later = _plain_backends(backend, set(self.control_tokens))
        self._backend = backend

    def token_text(self, token_id: int) -> str:
        """Write one token as text; one that is a part of a character has U+FFFD."""
        token = self._backend.id_to_token(token_id) or ""
        if token.startswith("▁"):  # a space, which decoders drop at the beginning
            return token.replace("▁", " ")
        return self._backend.decode([token_id], skip_special_tokens=False)

    def build(
        self,
        parts: Sequence[PromptPart],
        images: Sequence[ImageLayout] = (),
        template: ChatTemplate | None = None,
    ) -> TokenizedPrompt:
        """Tokenise a prompt and lay out its images.

        Args:
            parts: the prompt.
            images: what fills the slots, by :attr:`ImageSlot.index`.
            template: says how a slot expands; its default is one run of all rows.

        Raises:
            PromptError: the slots and the images do not pair off one to one.
            PromptError: a text cannot be tokenised, as one with a lone surrogate cannot.
            PluginContractError: the expansion's runs do not sum to the image's rows.
        """
        _check_slots(parts, len(images))
        template = template or ChatTemplate()
        run = _TokenRun(self, restarts_after_image=template.restarts_after_image)
        for part in parts:
            if isinstance(part, ImageSlot):
                image = images[part.index]
                expansion = template.expand(image.layout, image.num_rows)
                run.add_image(part.index, expansion, image.num_rows)
            else:
                run.add(part)
        run.flush()
        token_ids = run.token_ids
        num_prefix = 0
        if token_ids[: len(self._prefix_ids)] != list(self._prefix_ids):
            token_ids = [*self._prefix_ids, *token_ids]
            num_prefix = len(self._prefix_ids)
        spans = tuple(
            Span(span.start + num_prefix, span.stop + num_prefix, span.image, span.first_row)
            for span in run.spans
        )
        return TokenizedPrompt(tuple(token_ids), spans)

    def encode_plain(self, text: str, *, first: bool = True) -> list[int]:
        """Tokenise text in which nothing is a control token.

        Args:
            text: anything.
            first: whether the text begins a chunk; some tokenizers put a space before it then.
        """
        backend = self._first if first else self._later
        try:
            ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:  # lone surrogates are no text
            raise PromptError(f"{text[:80]!r} is not valid Unicode text: {error}") from error
        except BaseException as error:
            # A panic of Rust is no Exception: it would pass every handler on its way out.
            if type(error).__name__ != "PanicException":
                raise
            raise PromptError(
                f"the tokenizer failed on a text of {len(text)} characters, {text[:80]!r}: {error}"
            ) from error
        return ids


class _TokenRun:
    """Collects adjacent text, and tokenises it when a control token or an image ends it."""

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
        for found in self._tokenizer._control_pattern.finditer(part.text):
            self._append(part.text[end : found.start()])
            token_id, token = self._tokenizer.control_tokens[found[0]]
            if token.lstrip:
                self._texts = ["".join(self._texts).rstrip()]
            self.flush()
            self.token_ids.append(token_id)
            self._strip_left = token.rstrip
            end = found.end()
        self._append(part.text[end:])

    def add_image(
        self, index: int, expansion: Sequence[Text | Control | Rows], num_rows: int
    ) -> None:
        placed = 0
        for part in expansion:
            if not isinstance(part, Rows):
                self.add(part)
                continue
            self.flush()
            self._strip_left = False
            start = len(self.token_ids)
            self.token_ids += [self._tokenizer.filler_id] * part.num_rows
            self.spans.append(Span(start, start + part.num_rows, index, placed))
            placed += part.num_rows
            self._begins_chunk = self._restarts_after_image
        if placed != num_rows:
            raise PluginContractError(
                f"the chat template's expand placed {placed} rows of image {index}, "
                f"which has {num_rows}"
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
            f"the prompt has {len(slots)} image slot(s) for images {slots} and {num_images} "
            "image(s) came with it: give one image for each slot"
        )


def _ids_before_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special ids, such as BOS, that the tokenizer puts before every text."""
    bare: list[int] = tokenizer("x", add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer("x")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def _plain_backends(backend: Tokenizer, control: set[str]) -> tuple[Tokenizer, Tokenizer]:
    """Copy a tokenizer without its control tokens: for text that begins a chunk, and for later.

    They keep their ids, under names that nobody can type.
    """
    from tokenizers import Tokenizer

    secret = secrets.token_hex(16)
    names = {text: f"{secret}{number}" for number, text in enumerate(control)}
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
    """Rename entries of a tokenizer's vocabulary, and drop the merges that would make them."""
    if model["type"] == "Unigram":
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        return
    if names.keys().isdisjoint(model["vocab"]):  # they were added beside it
        return
    model["vocab"] = {names.get(text, text): token for text, token in model["vocab"].items()}
    model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [
            (left, right)
            for left, right in pairs
            if names.keys().isdisjoint((left, right, left + right))
        ]

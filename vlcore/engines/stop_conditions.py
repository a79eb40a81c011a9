"""The tokens and strings that end an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vlcore.engines.base import EngineRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vlcore.language.model import LanguageModel


@dataclass(frozen=True)
class RequestStops:
    """What ends the answers of one request."""

    strings: tuple[str, ...]
    """Stop strings, which are searched for in the text."""
    token_ids: frozenset[int]
    """End tokens, which are not part of the answer."""


@dataclass(frozen=True)
class StopConditions:
    """What ends the answers of a model, before the options of a request are considered."""

    eos_token_ids: frozenset[int]
    """The model's end-of-sequence tokens."""
    special_token_ids: Mapping[str, int]
    """The ids of the tokenizer's added tokens, by their text."""

    @classmethod
    def from_model(cls, language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Collect the end tokens that the model's configuration and its tokenizer define."""
        eos_token_ids = {*language_model.end_token_ids, tokenizer.eos_token_id} - {None}
        special_token_ids = {
            token.content: i for i, token in tokenizer.added_tokens_decoder.items()
        }
        return cls(frozenset(eos_token_ids), special_token_ids)

    def for_request(self, request: EngineRequest) -> RequestStops:
        """Combine the model's stop conditions with those of a request and its chat template."""
        config = request.config
        strings, token_ids = list(config.stop_words), set(config.stop_token_ids)
        # A stop string that is a special token must also end the answer by its id, because special
        # tokens may be left out of the text.
        token_ids |= {self.special_token_ids[s] for s in strings if s in self.special_token_ids}
        if not config.ignore_eos:
            token_ids |= self.eos_token_ids
            for stop in request.stop:
                if stop in self.special_token_ids:
                    token_ids.add(self.special_token_ids[stop])
                else:
                    strings.append(stop)
        return RequestStops(tuple(strings), frozenset(token_ids))

"""What ends the answers of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vlcore.engines.base import EngineRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vlcore.language.model import LanguageModel


@dataclass(frozen=True)
class StopConditions:
    """What ends the answers of a model: tokens, and control tokens by their text."""

    eos_ids: frozenset[int]
    control_ids: Mapping[str, int]

    @classmethod
    def of(cls, language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Read them off what a model's configuration and its tokenizer state."""
        eos_ids = {*language_model.end_token_ids, tokenizer.eos_token_id} - {None}
        control_ids = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
        return cls(frozenset(eos_ids), control_ids)

    def of_request(self, request: EngineRequest) -> tuple[list[str], set[int]]:
        """The texts and the tokens that end one request's answers."""
        config = request.config
        texts, ids = list(config.stop_words), set(config.stop_token_ids)
        # As a token too, which is left out of the text.
        ids |= {self.control_ids[text] for text in texts if text in self.control_ids}
        if not config.ignore_eos:
            ids |= self.eos_ids
            ids |= {self.control_ids[text] for text in request.stop if text in self.control_ids}
            texts += [text for text in request.stop if text not in self.control_ids]
        return texts, ids

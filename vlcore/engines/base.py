"""The face of every engine, and what goes in and comes out of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from vlcore.engines.generation import GenerationConfig
from vlcore.errors import ContextLengthError, EngineError, OptionError, PluginContractError
from vlcore.prompts.tokenization import TokenizedPrompt

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class EngineRequest:
    """What an engine is asked to continue.

    Shapes:
        rows: one tensor for each of the prompt's images, [k, hidden_size]; an image's spans say
            which of its rows stand where.
    """

    prompt: TokenizedPrompt
    rows: tuple[Tensor, ...] = ()
    config: GenerationConfig = field(default_factory=GenerationConfig)
    stop: tuple[str, ...] = ()
    """The chat template's stop texts."""


@dataclass(frozen=True)
class EngineOutput:
    """The next piece of an answer.

    Shapes:
        logits: [tokens, vocab] float32 on the host, a row for each of ``token_ids``.
        prompt_logits: [prompt's tokens, vocab] float32 on the host.
    """

    text: str
    """May be empty while a character or a possible stop text is incomplete."""
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    """Set on an answer's last piece: ``"stop"`` at an end or stop text, ``"length"`` at a limit."""
    choice: int = 0
    """Which of the request's ``n`` answers it belongs to."""
    logprobs: tuple[Mapping[int, float], ...] = ()
    """For each of ``token_ids``, if asked for: log-probabilities by token id, its own first, then
    those of the likeliest tokens."""
    logits: Tensor | None = field(default=None, compare=False, repr=False)
    prompt_logits: Tensor | None = field(default=None, compare=False, repr=False)
    """With an answer's first piece, if asked for."""


@dataclass(frozen=True)
class EngineStats:
    """What an engine has to do at a moment."""

    num_running: int
    """Answers in the running batch."""
    num_waiting: int
    """Answers that wait for a place in it. One whose prompt is being computed at the moment may
    be in neither number."""


class Engine(ABC):
    """Continues prompts of tokens and image rows."""

    name: ClassVar[str]
    offers: ClassVar[frozenset[str]] = frozenset()
    """What it can do beyond plain rows; see ``LanguageModel.requires``."""
    takes_rows_on_host: ClassVar[bool] = False
    """Whether image rows are better kept on the host than on its device."""
    hidden_size: int
    vocab_size: int
    context_length: int
    """The longest sequence of prompt and answer, in tokens."""
    context_limit_reason: str = ""
    """Why it is no longer, where ``LanguageModel`` says so."""

    @abstractmethod
    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput]:
        """Continue a prompt, piece by piece. Closing the iterator cancels the request.

        Raises:
            ContextLengthError: the prompt fills the context.
            PluginContractError: rows do not fit their spans or the model's width.
            EngineError: the model failed.
            EngineClosedError: the engine was closed.
        """

    @abstractmethod
    async def close(self) -> None:
        """Cancel what runs and free the model."""

    @abstractmethod
    def stats(self) -> EngineStats:
        """Take a snapshot of what it has to do; may be called from any thread."""

    def check_length(self, num_tokens: int) -> None:
        """Refuse a prompt that leaves no room for an answer.

        Raises:
            ContextLengthError: it has as many tokens as the context, or more.
        """
        if num_tokens >= self.context_length:
            why = f", because {self.context_limit_reason}" if self.context_limit_reason else ""
            raise ContextLengthError(
                f"the prompt has {num_tokens} tokens and image rows, and the context holds "
                f"{self.context_length} with the answer{why}: shorten the text, or give fewer "
                "images"
            )

    def check(self, request: EngineRequest) -> None:
        """Check a request against the model before anything is computed.

        Raises:
            ContextLengthError: the prompt fills the context.
            EngineError: the prompt is empty, or a token id is outside the vocabulary.
            OptionError: an option does not fit the model's vocabulary.
            PluginContractError: rows do not fit their spans or the model's width.
        """
        self._check_options(request.config)
        prompt = request.prompt
        if not prompt.token_ids:
            raise EngineError("the prompt is empty: at least one token is needed")
        self.check_length(len(prompt.token_ids))
        if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < self.vocab_size:
            raise EngineError(
                f"token ids must be in 0..{self.vocab_size - 1}; the prompt's are in "
                f"{min(prompt.token_ids)}..{max(prompt.token_ids)}: does the tokenizer belong to "
                "this model?"
            )
        placed = Counter[int]()
        for span in prompt.spans:
            placed[span.image] += span.stop - span.start
        for image, rows in enumerate(request.rows):
            if rows.ndim != 2 or rows.shape[1] != self.hidden_size:
                raise PluginContractError(
                    f"rows of image {image} must be [k, {self.hidden_size}] for this language "
                    f"model; they are {list(rows.shape)}"
                )
            if len(rows) != placed[image]:
                raise PluginContractError(
                    f"image {image} has {len(rows)} rows and its spans hold {placed[image]}"
                )
        counts = dict(enumerate(map(len, request.rows)))
        for span in prompt.spans:
            num_rows = counts.get(span.image, 0)
            if not (
                0 <= span.start <= span.stop <= len(prompt.token_ids)
                and 0 <= span.first_row <= num_rows - (span.stop - span.start)
            ):
                raise PluginContractError(
                    f"{span} points outside the prompt's {len(prompt.token_ids)} tokens or outside "
                    f"the {num_rows} rows that came for image {span.image}"
                )

    def _check_options(self, config: GenerationConfig) -> None:
        if config.logprobs is not None and config.logprobs > self.vocab_size:
            raise OptionError(
                f"logprobs must be at most the vocabulary's {self.vocab_size} tokens; it is "
                f"{config.logprobs}"
            )
        bad = set(config.bad_token_ids)
        if bad and (max(bad) >= self.vocab_size or len(bad) == self.vocab_size):
            raise OptionError(
                f"bad_token_ids must be in 0..{self.vocab_size - 1}, and not all of them; there "
                f"are {len(bad)}, up to {max(bad)}"
            )

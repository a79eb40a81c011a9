"""``Engine``, the interface of every engine, with its requests and outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from vlcore.engines.generation import GenerationConfig
from vlcore.errors import ContextLengthError, EngineError, OptionError, PluginContractError
from vlcore.language.prompt_inputs import USUAL_INPUTS, PromptInputs
from vlcore.prompts.tokenization import TokenizedPrompt

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class EngineRequest:
    """A prompt for an engine to continue.

    Raises:
        EngineError: there are keys for some images only.

    Shapes:
        rows: the embeddings of each of the prompt's images, [k, row_width] each. The prompt's
            spans define which of them are inserted at which positions.
    """

    prompt: TokenizedPrompt
    rows: tuple[Tensor, ...] = ()
    config: GenerationConfig = field(default_factory=GenerationConfig)
    stop: tuple[str, ...] = ()
    """The stop strings of the chat template."""
    inputs: PromptInputs = USUAL_INPUTS
    """Positions and attention groups of the prompt, if they are not the usual ones."""
    row_keys: tuple[str | None, ...] = ()
    """A key of the content of each image, if it is known. Embeddings of images with the same key
    must be the same. Without a key, what an engine computed for an image is not reused."""

    def __post_init__(self) -> None:
        if self.row_keys and len(self.row_keys) != len(self.rows):
            raise EngineError(
                f"row_keys must be empty or have a key, or None, for each of the {len(self.rows)} "
                f"images; there are {len(self.row_keys)}"
            )


@dataclass(frozen=True)
class EngineOutput:
    """A chunk of an answer.

    Shapes:
        logits: [tokens, vocab] float32 on the host, for each of ``token_ids``.
        prompt_logits: [prompt tokens, vocab] float32 on the host.
    """

    text: str
    """The new text; empty while a character or a possible stop string is incomplete."""
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    """Set on the last chunk of an answer: ``"stop"`` at an end token or a stop string, and
    ``"length"`` at a limit."""
    choice: int = 0
    """Index of the answer among the request's ``n`` answers."""
    logprobs: tuple[Mapping[int, float], ...] = ()
    """For each of ``token_ids``, if requested: log-probabilities by token id, first of the token
    itself and then of the most likely tokens."""
    logits: Tensor | None = field(default=None, compare=False, repr=False)
    prompt_logits: Tensor | None = field(default=None, compare=False, repr=False)
    """On the first chunk of an answer, if requested."""
    cached_tokens: int = field(default=0, compare=False)
    """How many of the prompt's tokens were not computed, because the engine had kept them."""

    def for_each_answer(self, config: GenerationConfig) -> Iterable[EngineOutput]:
        """Repeat a chunk for each of the answers that are the same as the generated one."""
        if config.num_distinct_answers == config.n:
            return (self,)
        return (replace(self, choice=choice) for choice in range(config.n))


@dataclass(frozen=True)
class EngineStats:
    """A snapshot of an engine's load."""

    num_running: int
    """Number of answers in the running batch."""
    num_waiting: int
    """Number of answers that wait to enter the batch. An answer whose prompt is being computed may
    be in neither number."""
    num_prompt_tokens: int = field(default=0, compare=False)
    """Number of tokens of all prompts so far that were computed or reused, if the engine counts
    them."""
    num_cached_tokens: int = field(default=0, compare=False)
    """Number of these tokens that were reused."""
    num_kept_tokens: int = field(default=0, compare=False)
    """Number of tokens that are kept for later prompts at this moment, in addition to those of
    running answers."""


class Engine(ABC):
    """Continues prompts of tokens and image embeddings."""

    name: ClassVar[str]
    offers: ClassVar[frozenset[str]] = frozenset()
    """The optional features of the engine; see ``LanguageModel.requires``."""
    max_values: ClassVar[Mapping[str, float]] = {}
    """The largest values of sampling options that the engine supports, where it has a limit."""
    supports_grammars: ClassVar[bool] = False
    """Whether answers can be required to have the form of a grammar."""
    takes_rows_on_host: ClassVar[bool] = False
    """Whether image embeddings should be kept on the host rather than on the engine's device."""
    hidden_size: int
    vocab_size: int
    context_length: int
    """Maximum length of prompt and answer together, in tokens."""
    context_limit_reason: str = ""
    """Why the context is not longer, where ``LanguageModel`` states a reason."""

    @property
    def row_width(self) -> int:
        """Width of an image's embedding; see ``LanguageModel.row_width``."""
        return self.hidden_size

    async def prepare(self, config: GenerationConfig) -> None:
        """Check a request's options, and prepare what they need, before anything is computed.

        Raises:
            GrammarError: the grammar is invalid, not supported or too complex.
            OptionError: an option does not match the model's vocabulary or the engine.
        """
        self._check_options(config)

    @abstractmethod
    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput]:
        """Continue a prompt, chunk by chunk. Closing the iterator cancels the request.

        Raises:
            ContextLengthError: the prompt leaves no room for an answer in the context.
            PluginContractError: image embeddings do not match their spans or the model's width.
            EngineError: the model failed.
            EngineClosedError: the engine was closed.
        """

    @abstractmethod
    async def close(self) -> None:
        """Cancel all requests, and free the model."""

    @abstractmethod
    def stats(self) -> EngineStats:
        """Take a snapshot of the engine's load. Thread-safe."""

    @property
    def failure(self) -> str | None:
        """Why the engine can serve no further requests, or ``None`` while it can. Thread-safe."""
        return None

    def check_length(self, num_tokens: int) -> None:
        """Check that a prompt leaves room for an answer.

        Raises:
            ContextLengthError: the prompt is at least as long as the context.
        """
        if num_tokens >= self.context_length:
            reason = f", because {self.context_limit_reason}" if self.context_limit_reason else ""
            raise ContextLengthError(
                f"the prompt has {num_tokens} tokens, including image embeddings, and the context "
                f"length is {self.context_length} tokens for prompt and answer{reason}: shorten "
                "the text, or use fewer images"
            )

    def check(self, request: EngineRequest) -> None:
        """Check a request against the model before anything is computed.

        Raises:
            ContextLengthError: the prompt leaves no room for an answer in the context.
            EngineError: the prompt is empty, or a token id is outside of the vocabulary.
            OptionError: an option does not match the model's vocabulary.
            PluginContractError: image embeddings do not match their spans or the model's width, or
                the prompt's positions or attention groups do not match its tokens.
        """
        self._check_options(request.config)
        prompt = request.prompt
        if not prompt.token_ids:
            raise EngineError("the prompt is empty: at least one token is needed")
        self.check_length(len(prompt.token_ids))
        if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < self.vocab_size:
            raise EngineError(
                f"token ids must be in 0..{self.vocab_size - 1}; those of the prompt are in "
                f"{min(prompt.token_ids)}..{max(prompt.token_ids)}: does the tokenizer belong to "
                "this model?"
            )
        if missing := sorted(request.inputs.features - self.offers):
            raise EngineError(
                f"the prompt has inputs that need {', '.join(missing)}, which the {self.name} "
                "engine does not offer"
            )
        request.inputs.check(len(prompt.token_ids), self.context_length)
        num_positions = Counter[int]()
        for span in prompt.spans:
            num_positions[span.image] += span.stop - span.start
        for image, rows in enumerate(request.rows):
            if rows.ndim != 2 or rows.shape[1] != self.row_width:
                raise PluginContractError(
                    f"the embeddings of image {image} must have the shape [k, {self.row_width}] "
                    f"for this language model; they have {list(rows.shape)}"
                )
            if len(rows) != num_positions[image]:
                raise PluginContractError(
                    f"image {image} has {len(rows)} embeddings, and its spans in the prompt have "
                    f"{num_positions[image]} positions"
                )
        counts = dict(enumerate(map(len, request.rows)))
        for span in prompt.spans:
            num_rows = counts.get(span.image, 0)
            if not (
                0 <= span.start <= span.stop <= len(prompt.token_ids)
                and 0 <= span.first_row <= num_rows - (span.stop - span.start)
            ):
                raise PluginContractError(
                    f"{span} is outside of the prompt's {len(prompt.token_ids)} tokens or of the "
                    f"{num_rows} embeddings of image {span.image}"
                )

    def _check_options(self, config: GenerationConfig) -> None:
        if config.grammar is not None and not self.supports_grammars:
            raise OptionError(
                f"grammar is not supported by the engine {self.name!r}: remove it, or use "
                "engine='transformers'"
            )
        if config.logprobs is not None and config.logprobs > self.vocab_size:
            raise OptionError(
                f"logprobs must be at most {self.vocab_size}, the size of the vocabulary; it is "
                f"{config.logprobs}"
            )
        if unknown := [i for i in config.logit_bias if i >= self.vocab_size]:
            raise OptionError(
                f"the token ids of logit_bias must be in 0..{self.vocab_size - 1}; one of them is "
                f"{unknown[0]}"
            )
        banned = set(config.bad_token_ids)
        if banned and (max(banned) >= self.vocab_size or len(banned) == self.vocab_size):
            raise OptionError(
                f"bad_token_ids must be in 0..{self.vocab_size - 1}, and must not be the whole "
                f"vocabulary; there are {len(banned)}, up to {max(banned)}"
            )

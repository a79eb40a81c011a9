"""The face of every engine, and what goes in and comes out of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from vlcore.errors import ContextLengthError, EngineError, OptionError, PluginContractError
from vlcore.prompt import Prompt

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How an answer is generated.

    Raises:
        OptionError: an option is unknown, of the wrong type or out of range.
    """

    max_new_tokens: int = 512
    """The longest answer, in tokens; the context's end cuts it too."""
    min_new_tokens: int = 0
    """No token that ends the answer before this many; stop texts end it at any time."""
    do_sample: bool = False
    """Draw tokens at random; ``False`` takes the most likely one and ignores the next four."""
    temperature: float = 0.8
    top_k: int = 50
    """Draw among this many most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Draw among the most likely tokens that together have this probability."""
    min_p: float = 0.0
    """Draw among tokens at least this likely, relative to the most likely one."""
    repetition_penalty: float = 1.0
    """Divides the score of tokens that prompt or answer hold already; 1 for none."""
    random_seed: int | None = None
    """Makes sampling repeatable."""
    stop_words: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    """Go on after the model's end of answer and the template's stop texts."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""

    def __new__(cls, *values: Any, **options: Any) -> Self:
        """Refuse unknown options with the list of known ones."""
        if values:
            raise OptionError(
                f"generation options are given by name, such as max_new_tokens={values[0]!r}"
            )
        known = [option.name for option in fields(cls)]
        if unknown := sorted(set(options) - set(known)):
            raise OptionError(
                f"unknown generation option(s) {', '.join(unknown)}; known: {', '.join(known)}"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("stop_words", "stop_token_ids"):
            value = getattr(self, name)
            several = isinstance(value, Iterable) and not isinstance(value, str)
            value = () if value is None else value if several else (value,)
            object.__setattr__(self, name, tuple(value))
        is_int = {"max_new_tokens": 1, "min_new_tokens": 0, "top_k": 0}
        for name, least in is_int.items():
            self._check(name, _is_int(getattr(self, name)) and getattr(self, name) >= least,
                        f"an integer of at least {least}")  # fmt: skip
        ranges = {
            "temperature": (0.0, 100.0),
            "top_p": (0.0, 1.0),
            "min_p": (0.0, 1.0),
            "repetition_penalty": (0.0, 100.0),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            is_number = isinstance(value, float) or _is_int(value)
            includes_low = name == "min_p"
            inside = is_number and (low <= value if includes_low else low < value) and value <= high
            bracket = "[" if includes_low else "("
            self._check(name, inside, f"a number in {bracket}{low:g}, {high:g}]")
        for name in ("do_sample", "ignore_eos", "skip_special_tokens"):
            self._check(name, isinstance(getattr(self, name), bool), "True or False")
        seed = self.random_seed
        self._check("random_seed", seed is None or (_is_int(seed) and 0 <= seed < 2**64),
                    "an integer in 0..2**64-1 or None")  # fmt: skip
        self._check("stop_words", all(isinstance(w, str) and w for w in self.stop_words),
                    "texts that are not empty")  # fmt: skip
        self._check("stop_token_ids", all(_is_int(t) and t >= 0 for t in self.stop_token_ids),
                    "token ids")  # fmt: skip
        self._check("min_new_tokens", self.min_new_tokens <= self.max_new_tokens,
                    f"at most max_new_tokens={self.max_new_tokens}")  # fmt: skip

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise OptionError(f"{name} must be {expected}; it is {getattr(self, name)!r}")


@dataclass(frozen=True)
class EngineRequest:
    """What an engine is asked to continue.

    Shapes:
        rows: one tensor for each of the prompt's images, [k, hidden_size]; an image's spans say
            which of its rows stand where.
    """

    prompt: Prompt
    rows: tuple[Tensor, ...] = ()
    config: GenerationConfig = field(default_factory=GenerationConfig)
    stop: tuple[str, ...] = ()
    """The chat template's stop texts."""


@dataclass(frozen=True)
class EngineOutput:
    """The next piece of an answer."""

    text: str
    """May be empty while a character or a possible stop text is incomplete."""
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    """Set on the last piece: ``"stop"`` at an end or stop text, ``"length"`` at a limit."""


class Engine(ABC):
    """Continues prompts of tokens and image rows."""

    name: ClassVar[str]
    offers: ClassVar[frozenset[str]] = frozenset()
    """What it can do beyond plain rows; see ``LanguageModel.requires``."""
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
            PluginContractError: rows do not fit their spans or the model's width.
        """
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


def as_generation_config(
    config: GenerationConfig | Mapping[str, Any] | None,
) -> GenerationConfig:
    """Read options that came as a mapping, or not at all.

    Raises:
        OptionError: it is neither, or an option is wrong.
    """
    if config is None:
        return GenerationConfig()
    if isinstance(config, GenerationConfig):
        return config
    if isinstance(config, Mapping):
        return GenerationConfig(**config)
    raise OptionError(
        "gen_config must be a GenerationConfig or a mapping of its options, "
        f"not {type(config).__name__}"
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""``GenerationConfig``: the options of text generation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, cast

from vlcore.engines.grammar import Grammar
from vlcore.errors import OptionError

MIN_TEMPERATURE = 1e-5
"""Below this temperature decoding is greedy: the most likely token is practically certain, and the
logits would overflow."""

_INTEGERS = ("n", "max_new_tokens", "min_new_tokens", "top_k", "random_seed", "logprobs")
_TOKEN_IDS = ("stop_token_ids", "bad_token_ids")
_SEQUENCES = ("stop_words", "bad_words", *_TOKEN_IDS)


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The options of text generation.

    By default, decoding is greedy, whatever ``generation_config.json`` of the checkpoint states.
    Whole numbers may be given as floats, such as 8.0.

    Raises:
        OptionError: an option is unknown, of the wrong type, out of range or contradicts another.
    """

    n: int = 1
    """Number of answers for the prompt. The sampled answer with index i is the same as the single
    answer for ``random_seed + i``. Greedy answers are all the same."""
    max_new_tokens: int = 512
    """Maximum length of the answer, in tokens; the end of the context limits it too."""
    min_new_tokens: int = 0
    """Minimum number of tokens before an end token. Stop strings end the answer at any time."""
    do_sample: bool = False
    """Sample the tokens. ``False`` chooses the most likely token (greedy decoding) and ignores
    ``temperature``, ``top_k``, ``top_p`` and ``min_p``."""
    temperature: float = 0.8
    """Divides the logits before sampling; lower values make the answers less random. 0 chooses the
    most likely token."""
    top_k: int = 50
    """Sample from this many most likely tokens; 0 and -1 for all tokens."""
    top_p: float = 1.0
    """Sample from the most likely tokens whose probabilities add up to this value; 0 chooses the
    most likely token."""
    min_p: float = 0.0
    """Sample from tokens with at least this probability relative to the most likely token."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative ones, of the tokens that are already in the
    prompt or the answer; 1 for no penalty."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of each token, once for each time that the answer contains it, as
    OpenAI defines it; the prompt is not counted. From -2 to 2, 0 for no penalty."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that the answer contains, as OpenAI defines it; the
    prompt is not counted. From -2 to 2, 0 for no penalty."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Added to the logits of these tokens, by token id: from -100 to 100. About 1 makes a token a
    little more likely; 100 practically selects it and -100 bans it."""
    random_seed: int | None = None
    """Seed that makes sampling reproducible, regardless of the engine's other requests."""
    stop_words: tuple[str, ...] = ()
    """Stop strings, which end the answer and are not part of its text."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer, in addition to the model's end tokens."""
    bad_words: tuple[str, ...] = ()
    """Banned strings, which never appear in the answer, however they are tokenized."""
    bad_token_ids: tuple[int, ...] = ()
    """Tokens that are never generated."""
    grammar: Grammar | None = None
    """The form that the answer must have: a JSON schema, a regular expression or a choice. The end
    tokens are allowed exactly when it is complete, and the answer ends where nothing else can
    follow, whatever ``min_new_tokens`` and ``ignore_eos`` are."""
    ignore_eos: bool = False
    """Continue the answer after the model's end tokens and the chat template's stop strings."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    continue_final_message: bool | None = None
    """Continue the last message of the conversation, which must be one of the assistant (``True``),
    or start a new answer after it (``False``). ``None`` continues it if it is one of the assistant.
    The answer contains only the continuation."""
    logprobs: int | None = None
    """Return the log-probability of each token of the answer, and of this many most likely tokens
    at its position, according to the model, before other options are applied."""
    output_logits: Literal["generation", "all"] | None = None
    """Return the model's logits for each token of the answer (``"generation"``), and for the tokens
    of the prompt as well (``"all"``)."""

    def __new__(cls, *values: Any, **options: Any) -> Self:
        """Refuse unknown options, with a list of the known ones."""
        if values:
            raise OptionError(
                "generation options must be keyword arguments, such as "
                f"max_new_tokens={values[0]!r}"
            )
        known = [option.name for option in fields(cls)]
        if unknown := sorted(set(options) - set(known)):
            raise OptionError(
                f"unknown generation option(s) {', '.join(unknown)}; known: {', '.join(known)}"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in _SEQUENCES:
            value = getattr(self, name)
            is_iterable = isinstance(value, Iterable) and not isinstance(value, str)
            value = () if value is None else value if is_iterable else (value,)
            values = map(_without_fraction, value) if name in _TOKEN_IDS else value
            object.__setattr__(self, name, tuple(values))
        object.__setattr__(self, "logit_bias", _as_logit_bias(self.logit_bias))
        for name in _INTEGERS:
            object.__setattr__(self, name, _without_fraction(getattr(self, name)))
        if _is_int(self.top_k) and self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        self._check_ranges()
        self._check_combinations()

    @property
    def is_greedy(self) -> bool:
        """Whether every token is the most likely one that the options allow."""
        return (
            not self.do_sample
            or self.temperature < MIN_TEMPERATURE
            or self.top_p == 0
            or self.top_k == 1
        )

    @property
    def num_distinct_answers(self) -> int:
        """Number of answers that must be generated; greedy answers are generated once."""
        return 1 if self.is_greedy else self.n

    def _check_ranges(self) -> None:
        minima = {"n": 1, "max_new_tokens": 1, "min_new_tokens": 0, "top_k": 0}
        for name, minimum in minima.items():
            value = getattr(self, name)
            is_valid = _is_int(value) and value >= minimum
            self._check(name, is_valid, f"an integer of at least {minimum}")
        maxima = {"temperature": 100.0, "top_p": 1.0, "min_p": 1.0, "repetition_penalty": 100.0}
        for name, maximum in maxima.items():
            value = getattr(self, name)
            includes_zero = name != "repetition_penalty"
            is_number = isinstance(value, float) or _is_int(value)
            is_valid = is_number and (value >= 0 if includes_zero else value > 0)
            bracket = "[" if includes_zero else "("
            self._check(
                name, is_valid and value <= maximum, f"a number in {bracket}0, {maximum:g}]"
            )
        for name in ("frequency_penalty", "presence_penalty"):
            is_valid = _is_number_in(getattr(self, name), -2, 2)
            self._check(name, is_valid, "a number in [-2, 2]")
        for token_id, bias in self.logit_bias.items():
            if not _is_int(token_id) or token_id < 0 or not _is_number_in(bias, -100, 100):
                raise OptionError(
                    "logit_bias must map token ids to numbers in [-100, 100]; it maps "
                    f"{token_id!r} to {bias!r}"
                )
        for name in ("do_sample", "ignore_eos", "skip_special_tokens"):
            self._check(name, isinstance(getattr(self, name), bool), "True or False")
        self._check("continue_final_message", self.continue_final_message in (None, True, False),
                    "True, False or None")  # fmt: skip
        seed, logprobs = self.random_seed, self.logprobs
        self._check("random_seed", seed is None or (_is_int(seed) and 0 <= seed < 2**64),
                    "an integer in 0..2**64-1 or None")  # fmt: skip
        self._check("logprobs", logprobs is None or (_is_int(logprobs) and logprobs >= 0),
                    "an integer of at least 0 or None")  # fmt: skip
        self._check("output_logits", self.output_logits in (None, "generation", "all"),
                    "'generation', 'all' or None")  # fmt: skip
        self._check("grammar", self.grammar is None or isinstance(self.grammar, Grammar),
                    "a Grammar, such as Grammar.json_schema(…), or None")  # fmt: skip
        for name in ("stop_words", "bad_words"):
            self._check(name, all(isinstance(word, str) and word for word in getattr(self, name)),
                        "strings that are not empty")  # fmt: skip
        for name in ("stop_token_ids", "bad_token_ids"):
            self._check(name, all(_is_int(token) and token >= 0 for token in getattr(self, name)),
                        "token ids")  # fmt: skip

    def _check_combinations(self) -> None:
        self._check("min_new_tokens", self.min_new_tokens <= self.max_new_tokens,
                    f"at most max_new_tokens={self.max_new_tokens}")  # fmt: skip
        banned = sorted(set(self.stop_token_ids) & set(self.bad_token_ids))
        self._check("stop_token_ids", not banned,
                    f"tokens that are not banned: {banned} are also in bad_token_ids")  # fmt: skip
        for stop in self.stop_words:
            bad = next((bad for bad in self.bad_words if bad in stop), None)
            self._check("stop_words", bad is None, f"strings that are not banned: {stop!r} "
                        f"contains {bad!r} from bad_words")  # fmt: skip

    def _check(self, name: str, is_valid: bool, expected: str) -> None:
        if not is_valid:
            raise OptionError(f"{name} must be {expected}; it is {getattr(self, name)!r}")


def as_generation_config(
    config: GenerationConfig | Mapping[str, Any] | None,
) -> GenerationConfig:
    """Convert a mapping of options, or ``None`` for the default ones.

    Raises:
        OptionError: ``config`` is of another type, or an option is invalid.
    """
    if config is None:
        return GenerationConfig()
    if isinstance(config, GenerationConfig):
        return config
    if isinstance(config, Mapping):
        if invalid := [key for key in config if not isinstance(key, str)]:
            raise OptionError(f"the names of generation options are strings, not {invalid[0]!r}")
        return GenerationConfig(**config)
    raise OptionError(
        "gen_config must be a GenerationConfig or a mapping of its options, "
        f"not {type(config).__name__}"
    )


def _without_fraction(value: Any) -> Any:
    """Convert a whole number that is a float to an integer; other values are returned as is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_logit_bias(value: Any) -> dict[Any, Any]:
    """Copy a mapping of token ids to biases; ``None`` is an empty one.

    Raises:
        OptionError: the value is not a mapping.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise OptionError(f"logit_bias must be a mapping of token ids to numbers; it is {value!r}")
    return {_without_fraction(token_id): bias for token_id, bias in value.items()}


def _is_number_in(value: object, minimum: float, maximum: float) -> bool:
    is_number = isinstance(value, float) or _is_int(value)
    return is_number and minimum <= cast("float", value) <= maximum


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""``GenerationConfig``: how an answer is generated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from vlcore.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How an answer is generated.

    Raises:
        OptionError: an option is unknown, of the wrong type, out of range or contradicts another.
    """

    n: int = 1
    """How many answers to draw for one prompt; more than one needs ``do_sample``. Answer i is the
    one that ``random_seed + i`` gives alone."""
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
    """Makes sampling repeatable, whatever else the engine is doing."""
    stop_words: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of its text."""
    stop_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    """Texts that never appear in the answer, in whatever tokens they could be written."""
    bad_token_ids: tuple[int, ...] = ()
    """Tokens that are never generated."""
    ignore_eos: bool = False
    """Go on after the model's end of answer and the template's stop texts."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    logprobs: int | None = None
    """Give the log-probability of every token of the answer, and of this many most likely ones
    beside it, by the model's own distribution: before any other option changes it."""
    output_logits: Literal["generation", "all"] | None = None
    """Give the model's logits of every token of the answer, or of the prompt's tokens too."""

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
        for name in ("stop_words", "stop_token_ids", "bad_words", "bad_token_ids"):
            value = getattr(self, name)
            several = isinstance(value, Iterable) and not isinstance(value, str)
            value = () if value is None else value if several else (value,)
            object.__setattr__(self, name, tuple(value))
        self._check_ranges()
        self._check_together()

    def _check_ranges(self) -> None:
        for name, least in {"n": 1, "max_new_tokens": 1, "min_new_tokens": 0, "top_k": 0}.items():
            value = getattr(self, name)
            self._check(name, _is_int(value) and value >= least, f"an integer of at least {least}")
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
        seed, logprobs = self.random_seed, self.logprobs
        self._check("random_seed", seed is None or (_is_int(seed) and 0 <= seed < 2**64),
                    "an integer in 0..2**64-1 or None")  # fmt: skip
        self._check("logprobs", logprobs is None or (_is_int(logprobs) and logprobs >= 0),
                    "an integer of at least 0 or None")  # fmt: skip
        self._check("output_logits", self.output_logits in (None, "generation", "all"),
                    "'generation', 'all' or None")  # fmt: skip
        for name in ("stop_words", "bad_words"):
            self._check(name, all(isinstance(word, str) and word for word in getattr(self, name)),
                        "texts that are not empty")  # fmt: skip
        for name in ("stop_token_ids", "bad_token_ids"):
            self._check(name, all(_is_int(token) and token >= 0 for token in getattr(self, name)),
                        "token ids")  # fmt: skip

    def _check_together(self) -> None:
        self._check("min_new_tokens", self.min_new_tokens <= self.max_new_tokens,
                    f"at most max_new_tokens={self.max_new_tokens}")  # fmt: skip
        self._check("n", self.n == 1 or self.do_sample,
                    "1 without do_sample=True: greedy answers are all the same")  # fmt: skip
        forbidden = sorted(set(self.stop_token_ids) & set(self.bad_token_ids))
        self._check("stop_token_ids", not forbidden,
                    f"tokens that may come: {forbidden} are bad_token_ids too")  # fmt: skip
        for word in self.stop_words:
            held = next((bad for bad in self.bad_words if bad in word), None)
            self._check("stop_words", held is None,
                        f"texts that may come: {word!r} holds the bad word {held!r}")  # fmt: skip

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise OptionError(f"{name} must be {expected}; it is {getattr(self, name)!r}")


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
        if odd := [key for key in config if not isinstance(key, str)]:
            raise OptionError(f"generation options have names; {odd[0]!r} is none")
        return GenerationConfig(**config)
    raise OptionError(
        "gen_config must be a GenerationConfig or a mapping of its options, "
        f"not {type(config).__name__}"
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import Any

import pytest
import torch

from vlcore.engines.transformers.grammars.matcher import GrammarMatcher


class InlineExecutor(Executor):
    """Runs each call at once."""

    def submit(self, fn: Any, /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **options))
        return future


class Fake:
    """A matcher of llguidance: any of the tokens 1 and 2, at most three of them."""

    def __init__(self, tokens: tuple[int, ...] = (), error: str = "") -> None:
        self.tokens = list(tokens)
        self.error = error
        self.error_of_mask = ""

    def consume_token(self, token_id: int) -> bool:
        self.tokens.append(token_id)
        if token_id not in (1, 2):
            self.error = "doesn't satisfy\nthe grammar"
        return not self.error

    def compute_bitmask(self) -> bytes:
        self.error = self.error or self.error_of_mask
        return bytes([0b1000_0110, 0b1])  # tokens 1, 2, 7 and 8

    def is_error(self) -> bool:
        return bool(self.error)

    def get_error(self) -> str:
        return self.error

    def is_accepting(self) -> bool:
        return len(self.tokens) >= 1

    def is_stopped(self) -> bool:
        return len(self.tokens) == 3

    def deep_copy(self) -> Fake:
        return Fake(tuple(self.tokens), self.error)


def test_the_mask_has_the_vocabulary_without_end_tokens() -> None:
    matcher = GrammarMatcher(Fake(), 9, [8])
    assert matcher.allowed().nonzero().flatten().tolist() == [1, 2, 7]
    assert GrammarMatcher(Fake(), 8, []).allowed().shape == (8,)


def test_the_state_follows_the_tokens_and_copies_are_independent() -> None:
    matcher = GrammarMatcher(Fake(), 9)
    states = []
    for _ in range(3):
        states.append((matcher.is_accepting, matcher.is_complete))
        other = matcher.copy()
        matcher.accept(1, InlineExecutor())
    assert states == [(False, False), (True, False), (True, False)]
    assert (matcher.is_complete, other.is_complete) == (True, False)
    assert torch.equal(other.allowed(), GrammarMatcher(Fake(), 9).allowed())


def test_a_token_that_the_grammar_does_not_allow_is_an_error() -> None:
    matcher = GrammarMatcher(Fake(), 9)
    matcher.accept(5, InlineExecutor())
    assert matcher.error == "doesn't satisfy the grammar"
    assert not matcher.allowed().any()
    assert not matcher.is_accepting


@pytest.mark.parametrize("max_step_s", [10.0, -1.0])
def test_a_step_that_exceeds_a_limit_is_an_error(max_step_s: float) -> None:
    fake = Fake()
    matcher = GrammarMatcher(fake, 9, (), max_step_s)
    if max_step_s > 0:
        fake.error_of_mask = "too many states"
    assert not matcher.allowed().any()
    assert matcher.error == (
        "too many states" if max_step_s > 0 else "one step of it takes too long"
    )

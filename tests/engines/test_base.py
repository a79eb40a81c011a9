from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
import torch

from vlcore.engines.base import Engine, EngineOutput, EngineRequest, GenerationConfig
from vlcore.errors import ContextLengthError, EngineError, OptionError, PluginContractError
from vlcore.prompt import Prompt, Span

# -- GenerationConfig


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("max_new_tokens", 1.0),
        ("max_new_tokens", "8"),
        ("max_new_tokens", None),
        ("max_new_tokens", True),
        ("min_new_tokens", -1),
        ("min_new_tokens", 0.5),
        ("min_new_tokens", 513),
        ("do_sample", 1),
        ("do_sample", "yes"),
        ("do_sample", None),
        ("temperature", 0),
        ("temperature", -0.1),
        ("temperature", 101.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "0.8"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", None),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("top_p", None),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", "0"),
        ("repetition_penalty", 0),
        ("repetition_penalty", 101),
        ("repetition_penalty", None),
        ("random_seed", 1.0),
        ("random_seed", "1"),
        ("random_seed", True),
        ("random_seed", -1),
        ("random_seed", 2**64),
        ("stop_words", ""),
        ("stop_words", ["a", ""]),
        ("stop_words", [1]),
        ("stop_words", 1),
        ("stop_words", 1.5),
        ("stop_token_ids", ["a"]),
        ("stop_token_ids", "a"),
        ("stop_token_ids", [True]),
        ("stop_token_ids", [1.0]),
        ("stop_token_ids", 1.0),
        ("stop_token_ids", [-1]),
        ("ignore_eos", 0),
        ("ignore_eos", None),
        ("skip_special_tokens", "no"),
    ],
)
def test_an_option_out_of_range_or_of_a_wrong_type_is_named(option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{option} must be .+; it is "):
        GenerationConfig(**{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_new_tokens", 1),
        ("min_new_tokens", 512),
        ("temperature", 100),
        ("temperature", 1),
        ("top_k", 0),
        ("top_p", 1),
        ("top_p", 1e-6),
        ("min_p", 0),
        ("min_p", 1.0),
        ("repetition_penalty", 0.5),
        ("random_seed", 0),
        ("random_seed", 2**63),
    ],
)
def test_the_ends_of_every_range_are_allowed(option: str, value: Any) -> None:
    assert getattr(GenerationConfig(**{option: value}), option) == value


def test_unknown_options_are_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"\(s\) beams, top_q; known: max_new_tokens.*top_p"):
        GenerationConfig(top_q=1, beams=4)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("given", "kept"), [(None, ()), ("a", ("a",)), (["a", "b"], ("a", "b")), ((), ())]
)
def test_stop_words_are_kept_as_a_tuple(given: Any, kept: tuple[str, ...]) -> None:
    assert GenerationConfig(stop_words=given).stop_words == kept


@pytest.mark.parametrize(("given", "kept"), [(None, ()), (2, (2,)), ([2, 3], (2, 3))])
def test_stop_token_ids_are_kept_as_a_tuple(given: Any, kept: tuple[int, ...]) -> None:
    assert GenerationConfig(stop_token_ids=given).stop_token_ids == kept


def test_a_copy_is_checked_too() -> None:
    config = GenerationConfig(top_k=3)
    assert replace(config, top_p=0.5) == GenerationConfig(top_k=3, top_p=0.5)
    with pytest.raises(OptionError, match="top_p"):
        replace(config, top_p=2.0)


# -- Engine.check


class FakeEngine(Engine):
    name = "fake"
    hidden_size = 4
    vocab_size = 10
    context_length = 8

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput]:
        yield EngineOutput("", (), "stop")

    async def close(self) -> None:
        pass


def check(token_ids: tuple[int, ...], spans: Any = (), rows: Any = ()) -> None:
    FakeEngine().check(EngineRequest(Prompt(token_ids, tuple(spans)), tuple(rows)))


def test_a_request_that_fits_passes() -> None:
    check((0, 9, 1, 2, 3, 4, 5))
    check(
        (0,) * 6,
        [Span(0, 2, 1, 0), Span(3, 4, 0, 0), Span(4, 6, 1, 2)],
        [torch.zeros(1, 4), torch.zeros(4, 4)],
    )


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(EngineError, match="prompt is empty"):
        check(())


@pytest.mark.parametrize("num_tokens", [8, 9])
def test_a_prompt_that_fills_the_context_is_refused(num_tokens: int) -> None:
    with pytest.raises(ContextLengthError, match=f"has {num_tokens} tokens.*holds 8"):
        check((1,) * num_tokens)


def test_the_reason_for_a_short_context_is_told() -> None:
    engine = FakeEngine()
    engine.context_limit_reason = "the moon is full"
    with pytest.raises(ContextLengthError, match=r"holds 8 .*, because the moon is full: shorten"):
        engine.check_length(8)


@pytest.mark.parametrize("token_id", [-1, 10])
def test_a_token_outside_the_vocabulary_is_refused(token_id: int) -> None:
    with pytest.raises(EngineError, match=r"must be in 0..9; the prompt's are in .*does the token"):
        check((3, token_id))


@pytest.mark.parametrize("shape", [(2, 5), (2,), (1, 2, 4)])
def test_rows_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PluginContractError, match=r"rows of image 0 must be \[k, 4\]"):
        check((0, 0), [Span(0, 2, 0, 0)], [torch.zeros(shape)])


@pytest.mark.parametrize("num_rows", [1, 3])
def test_rows_that_do_not_fill_their_spans_are_refused(num_rows: int) -> None:
    with pytest.raises(
        PluginContractError, match=f"image 0 has {num_rows} rows and its spans hold 2"
    ):
        check((0, 0, 0), [Span(0, 2, 0, 0)], [torch.zeros(num_rows, 4)])


@pytest.mark.parametrize(
    "span",
    [Span(1, 1, 1, 1), Span(1, 1, -1, 1), Span(2, 3, 0, 0), Span(-1, 0, 0, 0), Span(0, 1, 0, 1)],
)
def test_spans_that_point_nowhere_are_refused(span: Span) -> None:
    with pytest.raises(PluginContractError, match=r"Span.* points outside"):
        check((0, 0), [span] if span.image == 0 else [Span(1, 2, 0, 0), span], [torch.zeros(1, 4)])


def test_spans_without_rows_are_refused() -> None:
    with pytest.raises(PluginContractError, match=r"Span.* points outside"):
        check((0, 0), [Span(0, 2, 0, 0)])


def test_rows_without_spans_are_refused() -> None:
    with pytest.raises(PluginContractError, match="image 0 has 1 rows and its spans hold 0"):
        check((0, 0), [], [torch.zeros(1, 4)])

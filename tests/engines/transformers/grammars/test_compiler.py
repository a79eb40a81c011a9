from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from engine_requests import run
from transformers import PreTrainedTokenizerBase
from waits import TIMEOUT_S

from vlcore.engines.grammar import Grammar
from vlcore.engines.transformers.grammars import compiler as module
from vlcore.engines.transformers.grammars.compiler import GrammarCompiler
from vlcore.engines.transformers.grammars.trial import TrialCompiler
from vlcore.errors import EngineClosedError, EngineError, GrammarError

TOO_COMPLEX = Grammar.json_schema(
    {"type": "string", "allOf": [{"pattern": f".*a{i}.*"} for i in range(20)]}
)
"""llguidance intersects the patterns, whose number it does not limit, for minutes."""


@pytest.fixture(scope="module")
def compiler(tokenizer: PreTrainedTokenizerBase) -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(tokenizer, 700, [2])
    yield made
    asyncio.run(made.close())


def fault(compiler: GrammarCompiler, grammar: Grammar) -> str:
    with pytest.raises(GrammarError) as caught:
        asyncio.run(compiler.compile(grammar))
    return str(caught.value)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"properties": {"a": {"items": {"not": {}}}}}, "at /properties/a/items: Unimplemented"),
        ({"properties": {"a": {"type": "foo"}}}, "at /properties/a: Invalid type: foo"),
        ({"type": "string", "pattern": "(["}, "at /: regex parse error"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "at /properties/a: Pointer"),
        ({"anyOf": [{"type": "null"}, {"format": "no", "type": "string"}]}, "at /anyOf/1: Unknown"),
        (False, "Unsatisfiable"),
    ],
)
def test_the_path_in_the_schema_is_named(
    compiler: GrammarCompiler, schema: Any, message: str
) -> None:
    assert message in fault(compiler, Grammar.json_schema(schema))


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json_schema({"$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}}},
                             "$ref": "#/$defs/n"}),
        Grammar.json_schema({"enum": [f"value {i}" for i in range(5000)]}),
        Grammar.json_schema({"type": "array", "minItems": 10**6, "items": {"type": "integer"}}),
        Grammar.json_schema({"type": "string", "maxLength": 10**9}),
        Grammar.regex("(x+x+)+y"),
        Grammar.regex("(.*a.{20})"),
    ],
)  # fmt: skip
def test_recursion_and_large_repetitions_can_be_compiled(
    compiler: GrammarCompiler, grammar: Grammar
) -> None:
    async def body() -> None:
        assert (await compiler.compile(grammar)).allowed().any()

    run(body)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json_schema({"$ref": "#"}),
        Grammar.json_schema({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                             "$ref": "#/$defs/a"}),
        Grammar.json_schema({"$ref": "http://example.com/schema"}),
        Grammar.json_schema({"allOf": [{"anyOf": [{"properties": {f"{c}{i}": {"type": "string"}}}
                                                  for c in "ab"]} for i in range(16)]}),
        Grammar.regex("(" * 2000 + ")" * 2000),
        Grammar.regex("(?=a)b"),
    ],
)  # fmt: skip
def test_what_is_endless_too_large_or_elsewhere_is_refused(
    compiler: GrammarCompiler, grammar: Grammar
) -> None:
    assert "cannot be compiled" in fault(compiler, grammar)


@pytest.mark.slow
def test_a_compilation_that_takes_too_long_is_ended_and_not_repeated(
    compiler: GrammarCompiler,
) -> None:
    assert "JSON schema is too complex" in fault(compiler, TOO_COMPLEX)
    assert compiler._trial is not None
    assert compiler._trial._process is None  # it was ended
    assert "JSON schema is too complex" in fault(compiler, TOO_COMPLEX)
    assert compiler._trial._process is None  # and not started for the same schema again
    run_one(compiler, Grammar.regex("after"))


def run_one(compiler: GrammarCompiler, grammar: Grammar) -> None:
    async def body() -> None:
        await compiler.compile(grammar)

    run(body)


def test_the_event_loop_runs_and_known_grammars_do_not_wait_while_one_is_compiled(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = TrialCompiler.check
    started, may_go_on = threading.Event(), threading.Event()

    def wait_and_check(trial: TrialCompiler, grammar: Grammar) -> None:
        started.set()
        assert may_go_on.wait(TIMEOUT_S)
        check(trial, grammar)

    known = Grammar.regex("known")
    run_one(compiler, known)
    monkeypatch.setattr(TrialCompiler, "check", wait_and_check)

    async def body() -> None:
        task = asyncio.create_task(compiler.compile(Grammar.regex("slow")))
        await asyncio.to_thread(started.wait, TIMEOUT_S)
        await compiler.compile(known)
        assert not task.done()
        may_go_on.set()
        await task

    run(body)


def test_the_number_of_kept_grammars_is_bounded(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CACHE_SIZE", 3)
    compiler._compiled.clear()
    for grammar in [Grammar.regex(f"{i}") for i in range(6)]:
        run_one(compiler, grammar)
    used = list(compiler._compiled)
    assert used == [Grammar.regex(f"{i}") for i in (3, 4, 5)]
    run_one(compiler, used[0])
    run_one(compiler, Grammar.regex("another"))
    assert list(compiler._compiled) == [used[2], used[0], Grammar.regex("another")]


def test_a_cancelled_request_is_not_compiled(compiler: GrammarCompiler) -> None:
    async def body() -> None:
        task = asyncio.create_task(compiler.compile(Grammar.regex("cancelled")))
        with compiler._changed:  # the compiler's thread cannot take the job
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await compiler.compile(Grammar.regex("next"))
        assert Grammar.regex("cancelled") not in compiler._compiled

    run(body)


def test_a_closed_compiler_compiles_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    made = GrammarCompiler(tokenizer, 700, [2])
    asyncio.run(made.close())
    with pytest.raises(EngineClosedError):
        asyncio.run(made.compile(Grammar.regex("a")))


def test_without_llguidance_the_error_says_what_to_install(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    made = GrammarCompiler(tokenizer, 700, [2])
    assert "pip install llguidance" in fault(made, Grammar.regex("a"))
    asyncio.run(made.close())


def test_a_process_that_cannot_start_is_an_error_of_the_engine() -> None:
    trial = TrialCompiler({"tokenizer": "no tokenizer"})
    with pytest.raises(EngineError, match="cannot start"):
        trial.check(Grammar.regex("a"))


def test_a_process_that_ends_means_that_the_grammar_is_too_complex() -> None:
    trial = TrialCompiler({}, module="ending_trial")
    with pytest.raises(GrammarError, match="too complex"):
        trial.check(Grammar.regex("a"))
    with pytest.raises(GrammarError, match="too complex"):  # in another process
        trial.check(Grammar.regex("b"))


def test_a_process_that_does_not_reply_is_ended() -> None:
    trial = TrialCompiler({}, module="silent_trial", timeout_s=0.01)
    with pytest.raises(EngineError, match="cannot start"):
        trial.check(Grammar.regex("a"))

"""``GrammarCompiler``: compiles the grammars of requests in a thread, and keeps the last ones."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Collection, Hashable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from vlcore._utils.fair_queue import FairQueue, current_client
from vlcore._utils.fork import ForkGuard
from vlcore.engines.grammar import Grammar
from vlcore.engines.transformers.grammars.matcher import GrammarMatcher
from vlcore.engines.transformers.grammars.tokenizer import TextTokenizer, read_backend
from vlcore.engines.transformers.grammars.translation import make_limits, translate
from vlcore.engines.transformers.grammars.trial import TrialCompiler
from vlcore.errors import EngineClosedError, GrammarError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CACHE_SIZE = 64
"""How many compiled grammars, and grammars that cannot be compiled, are kept."""

_Job = tuple["Future[GrammarMatcher]", Grammar]


class GrammarCompiler:
    """Compiles grammars for the answers of one model.

    Each grammar is compiled in a separate process first, see :mod:`.trial_process`, and then in a
    thread of this one. Clients take turns.

    Args:
        tokenizer: the model's tokenizer.
        vocab_size: size of the model's vocabulary.
        eos_token_ids: the model's end tokens, which are never part of an answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        eos_token_ids: Collection[int],
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(i for i in eos_token_ids if i < vocab_size)
        self._compiled: OrderedDict[Grammar, GrammarMatcher | str] = OrderedDict()
        """A matcher in its first state, or why there is none; the last used one at the end."""
        self._jobs: FairQueue[Hashable, _Job] = FairQueue()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._fork_guard = ForkGuard("engine")
        self._is_closed = False
        self._ll_tokenizer: Any = None
        self._special_token_ids: list[int] = []
        self._trial: TrialCompiler | None = None

    async def compile(self, grammar: Grammar) -> GrammarMatcher:
        """Return a matcher for one answer, in its first state.

        Raises:
            GrammarError: the grammar cannot be compiled.
            OptionError: llguidance, or a tokenizer that it can read, is missing.
            EngineClosedError: the engine was closed.
        """
        self._fork_guard.check()
        with self._changed:
            compiled = self._look_up(grammar)
            if compiled is None:
                if self._is_closed:
                    raise EngineClosedError("the engine was closed")
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name="vlcore-grammars", daemon=True
                    )
                    self._thread.start()
                future: Future[GrammarMatcher] = Future()
                self._jobs.add(current_client.get(None), (future, grammar))
                self._changed.notify()
        if compiled is None:
            compiled = await asyncio.wrap_future(future)
        return compiled.copy()

    async def close(self) -> None:
        """End the thread and the process, and fail the requests that wait for them."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
            if self._trial is not None:
                self._trial.interrupt()
        # Polled, because an executor that could join the thread starts no threads at exit.
        while self._thread is not None and self._thread.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    def _look_up(self, grammar: Grammar) -> GrammarMatcher | None:
        """Return a grammar that was compiled before, or raise the error that it had."""
        compiled = self._compiled.get(grammar)
        if compiled is not None:
            self._compiled.move_to_end(grammar)
        if isinstance(compiled, str):
            raise GrammarError(compiled)
        return compiled

    # -- called from the compiler's thread

    def _run(self) -> None:
        while (job := self._next_job()) is not None:
            future, grammar = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._compile_once(grammar))
                except Exception as error:
                    future.set_exception(error.with_traceback(None))
            del job, future
        if self._trial is not None:
            self._trial.close()

    def _next_job(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._is_closed)
            while self._is_closed and self._jobs:
                future, _ = self._jobs.pop()
                if future.set_running_or_notify_cancel():
                    future.set_exception(EngineClosedError("the engine was closed"))
            return None if self._is_closed else self._jobs.pop()

    def _compile_once(self, grammar: Grammar) -> GrammarMatcher:
        """Compile a grammar unless another request for it was first, and keep the result."""
        with self._changed:
            compiled = self._look_up(grammar)
        if compiled is not None:
            return compiled
        error: GrammarError | None = None
        try:
            result: GrammarMatcher | str = self._compile(grammar)
        except GrammarError as caught:
            error, result = caught, str(caught)
        with self._changed:
            if self._is_closed:
                raise EngineClosedError("the engine was closed")
            self._compiled[grammar] = result
            if len(self._compiled) > _CACHE_SIZE:
                self._compiled.popitem(last=False)
        if error is not None:
            raise error
        assert isinstance(result, GrammarMatcher)  # noqa: S101  (for mypy: otherwise it is an error)
        return result

    def _compile(self, grammar: Grammar) -> GrammarMatcher:
        if self._trial is None:
            self._start()
        assert self._trial is not None  # noqa: S101  (for mypy: _start sets it)
        self._trial.check(grammar)
        from llguidance import LLMatcher

        text = translate(grammar.kind, grammar.source)
        matcher = LLMatcher(self._ll_tokenizer, text, log_level=0, limits=make_limits())
        compiled = GrammarMatcher(matcher, self._vocab_size, self._special_token_ids)
        compiled.allowed()  # the first mask is computed once, for all answers
        return compiled

    def _start(self) -> None:
        """Read the tokenizer.

        Raises:
            GrammarError: llguidance is not installed, or cannot read the tokenizer.
        """
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            raise GrammarError(
                f"grammars need llguidance, which cannot be imported ({error}): "
                "pip install llguidance"
            ) from None
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None or not self._eos_token_ids:
            raise GrammarError(
                "grammars need a tokenizer with a Rust backend and an end token; "
                f"{type(self._tokenizer).__name__} lacks one of them"
            )
        as_json, plain = read_backend(backend)
        settings: dict[str, Any] = {
            "tokenizer": as_json,
            "n_vocab": max(self._vocab_size, len(self._tokenizer)),
            "eos_token": self._eos_token_ids,
        }
        try:
            self._ll_tokenizer = LLTokenizer(**settings)
            if plain is not None:
                text = TextTokenizer(self._ll_tokenizer, plain, self._eos_token_ids)
                self._ll_tokenizer = LLTokenizer(**settings | {"tokenizer": text})
        except Exception as error:
            raise GrammarError(f"llguidance cannot read the tokenizer: {error}") from None
        added = (i for i in self._tokenizer.added_tokens_decoder if i < self._vocab_size)
        special = filter(self._ll_tokenizer.is_special_token, added)
        self._special_token_ids = sorted({*self._eos_token_ids, *special})
        with self._changed:
            self._trial = TrialCompiler(settings)
            if self._is_closed:
                self._trial.interrupt()

"""``TrialCompiler``: compiles grammars in a process that is ended if it takes too long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from vlcore.engines.grammar import Grammar
from vlcore.engines.transformers.grammars.trial_process import READY
from vlcore.errors import EngineError, GrammarError

_TIMEOUT_S = 60.0
"""Time for a compilation where the system does not limit the processor time, which is far less."""
_NO_PROCESS = "the process in which grammars are compiled on trial cannot start"
_MODULE = "vlcore.engines.transformers.grammars.trial_process"


class TrialCompiler:
    """Checks that grammars can be compiled, within limits of time and memory.

    The process is started for the first grammar, and again after one that it was ended for.

    Args:
        tokenizer_settings: the arguments of llguidance's tokenizer.
        module: the module that the process runs.
        timeout_s: time for one compilation, in addition to the limit of its processor time.
    """

    def __init__(
        self,
        tokenizer_settings: Mapping[str, Any],
        *,
        module: str = _MODULE,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._settings = json.dumps(tokenizer_settings)
        self._module = module
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._is_closed = False

    def check(self, grammar: Grammar) -> None:
        """Compile a grammar on trial. Not thread-safe.

        Raises:
            GrammarError: the grammar cannot be compiled, or not within the limits.
            EngineError: the process cannot start.
        """
        process = self._started_process()
        request = json.dumps({"kind": grammar.kind, "source": grammar.source})
        reply = self._ask(process, request)
        if not reply:
            self._stop(process)
            raise GrammarError(
                f"the {grammar.label} is too complex: compiling it takes too much time or memory. "
                "Simplify it, such as by fewer or shorter patterns and repetitions"
            )
        error: str | None = json.loads(reply)
        if error is not None:
            raise GrammarError(f"the {grammar.label} cannot be compiled: {_shorten(error)}")

    def interrupt(self) -> None:
        """End the process, whatever it does. Thread-safe."""
        self._is_closed = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """End the process and free its pipes. Not thread-safe."""
        self._is_closed = True
        if self._process is not None:
            self._stop(self._process)

    def _ask(self, process: subprocess.Popen[str], line: str) -> str:
        """Send a line to the process, and return its reply; empty if it ended."""
        assert process.stdin is not None  # noqa: S101  (for mypy: both are pipes)
        assert process.stdout is not None  # noqa: S101
        timer = threading.Timer(self._timeout_s, process.kill)
        timer.start()
        try:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            return process.stdout.readline()
        except OSError:
            return ""
        finally:
            timer.cancel()

    def _started_process(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except OSError as error:
            raise EngineError(f"{_NO_PROCESS}: {error}") from None
        if self._is_closed:
            process.kill()
        if self._ask(process, self._settings).strip() != READY:
            self._stop(process)
            raise EngineError(f"{_NO_PROCESS}: {sys.executable} -m {self._module} ended")
        return process

    def _stop(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # the process ended before it read everything
                    pipe.close()
        self._process = None


def _shorten(message: str) -> str:
    lines = " ".join(message.split())
    return lines if len(lines) <= 300 else f"{lines[:300]} …"

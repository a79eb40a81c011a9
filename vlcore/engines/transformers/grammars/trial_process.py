"""The process in which grammars are compiled on trial, with limits on its time and memory.

llguidance bounds most of its work, but not all: the intersection of a dozen patterns takes minutes,
and a thread that computes it cannot be interrupted. A process can.

The process reads JSON objects from its standard input, one a line: first the tokenizer, and then
grammars. It writes a line when it is ready, and then one for each grammar: the error, or ``null``.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from vlcore.engines.transformers.grammars.fault_path import fault_path
from vlcore.engines.transformers.grammars.translation import make_limits, translate

READY = "ready"
"""The line that the process writes when it has read the tokenizer."""
_CPU_LIMIT_S = 1
"""Processor time of one compilation, in seconds, rounded up to whole seconds of the process."""
_MEMORY_LIMIT_BYTES = 1024**3
"""Memory that compilations may take in addition to that of the process at its start."""


def main() -> None:
    """Compile the grammars of the standard input until it ends."""
    from llguidance import LLTokenizer

    settings = json.loads(sys.stdin.readline())
    tokenizer = LLTokenizer(**settings)
    _limit_memory()
    print(READY, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        _limit_time()
        error = compile_on_trial(tokenizer, request["kind"], request["source"])
        print(json.dumps(error), flush=True)


def compile_on_trial(tokenizer: Any, kind: str, source: str) -> str | None:
    """Compile a grammar, and return why that is not possible, with the path in a JSON schema."""
    error = _compile(tokenizer, kind, source)
    if error is None or kind != "json_schema":
        return error

    def has_fault(schema: Any) -> bool:
        return _compile(tokenizer, kind, json.dumps(schema)) == error

    return f"at {fault_path(json.loads(source), has_fault) or '/'}: {error}"


def _compile(tokenizer: Any, kind: str, source: str) -> str | None:
    from llguidance import LLMatcher

    try:
        grammar = translate(kind, source)
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=make_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()
    except Exception as error:
        return str(error)
    return matcher.get_error() if matcher.is_error() else None


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    import psutil

    limit = psutil.Process().memory_info().vms + _MEMORY_LIMIT_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _limit_time() -> None:
    """End the process when it has used its time for one compilation."""
    try:
        import resource
    except ImportError:  # Windows, where the parent's time limit remains
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime) + _CPU_LIMIT_S
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


if __name__ == "__main__":
    main()

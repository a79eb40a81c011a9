"""A pipeline whose process is forked. Only children of a new interpreter are forked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_llava
from waits import TIMEOUT_S

SCRIPT = r"""
import asyncio, gc, multiprocessing, sys, warnings

warnings.simplefilter("ignore")  # from Python 3.12 on, about threads at a fork
import vlcore
from vlcore.errors import EngineClosedError

pipe = vlcore.pipeline(sys.argv[1], device="cpu", dtype="float32")
timeout_s = float(sys.argv[2])
options = {"max_new_tokens": 4}
expected = pipe("hello", options).text
stream = pipe.stream_infer("hello", {"max_new_tokens": 40, "ignore_eos": True})
next(stream)


def refused(call):
    try:
        call()
    except EngineClosedError as error:
        assert "fork" in str(error), error
    else:
        raise SystemExit("no error")


def exits():
    pass


def answers():
    refused(lambda: pipe("hello", options))
    refused(lambda: pipe(["hello", "there"], options))
    refused(lambda: pipe.chat("hello"))
    refused(lambda: list(pipe.stream_infer("hello")))
    refused(lambda: pipe.run(asyncio.sleep(0)))


def answers_asynchronously():
    refused(lambda: asyncio.run(pipe.ainfer("hello", options)))


def continues_a_stream():
    refused(lambda: next(stream))


def closes():
    pipe.close()
    pipe.close()


def drops():
    global pipe, stream
    del pipe, stream
    gc.collect()


def leaves_a_context():
    with pipe:
        pass


failed = []
context = multiprocessing.get_context("fork")
for body in (
    exits, answers, answers_asynchronously, continues_a_stream, closes, drops, leaves_a_context
):
    child = context.Process(target=body)
    child.start()
    child.join(timeout_s)
    if child.exitcode != 0:
        child.kill()
        failed.append((body.__name__, child.exitcode))

import os
pid = os.fork()
if pid == 0:
    sys.exit(0)  # with the handlers of atexit, which multiprocessing does not run
timer = __import__("threading").Timer(timeout_s, os.kill, (pid, 9))
timer.start()
_, status = os.waitpid(pid, 0)
timer.cancel()
if status:
    failed.append(("sys.exit", status))

stream.close()
assert pipe("hello", options).text == expected
pipe.close()
print("failed:", failed)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_forked_child_gets_errors_and_can_exit(tmp_path: Path) -> None:
    model = write_llava(tmp_path / "model")
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), str(TIMEOUT_S)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["failed: []"]), (
        result.stdout + result.stderr
    )

"""Starting vLLM: what may be wrong with its settings, its weights, its memory and its effect."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from engine_requests import LONG, answer, request, run
from waits import TIMEOUT_S, until

from vlcore.engines.base import EngineStats
from vlcore.engines.vllm.engine import VllmEngine
from vlcore.engines.vllm.support import supported_architectures
from vlcore.errors import EngineClosedError, EngineUnavailableError, OptionError

# After a failed start, vLLM leaves a context of ZeroMQ to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning")

Start = Callable[..., VllmEngine]


def vllms_processes() -> list[psutil.Process]:
    """Return the processes of this one, except that with which Python tracks shared memory."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(process.cmdline())
    ]


@pytest.fixture
def no_process_is_left() -> Iterator[None]:
    """Check that whatever a test starts is gone at its end."""
    before = {process.pid for process in vllms_processes()}
    yield
    started = [process for process in vllms_processes() if process.pid not in before]
    _, alive = psutil.wait_procs(started, TIMEOUT_S)
    assert alive == []
    gc.collect()  # while the warning about what vLLM leaves open is ignored


def test_vllm_knows_the_supported_architectures() -> None:
    from vllm.model_executor.models import ModelRegistry

    assert set(supported_architectures()) <= set(ModelRegistry.get_supported_archs())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"no_such_field": 1},
            OptionError,
            "AsyncEngineArgs: .*no_such_field",
        ),
        ({"model": "other"}, OptionError, "must not set model='other'"),
        (
            {"max_model_len": 10**6},
            EngineUnavailableError,
            r"(?s)vLLM 0\.3\d\.\d cannot start on .*max_model_len \(1000000\)",
        ),
    ],
)
def test_settings_that_vllm_does_not_accept_are_errors(
    start: Start, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        start(**fields)


@pytest.mark.slow
@pytest.mark.usefixtures("no_process_is_left")
def test_too_little_memory_is_an_error(start: Start) -> None:
    with pytest.raises(EngineUnavailableError, match=r"(?s)cannot start .*if memory is short"):
        start(kv_cache_memory_bytes=2**50)


@pytest.mark.slow
@pytest.mark.usefixtures("no_process_is_left")
def test_a_damaged_view_is_an_error(start: Start, view: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "view"
    shutil.copytree(view, damaged, symlinks=True)
    index_file = damaged / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    index["weight_map"]["no.such.tensor"] = next(iter(index["weight_map"].values()))
    index_file.unlink()
    index_file.write_text(json.dumps(index))
    with pytest.raises(EngineUnavailableError, match=rf"(?s)cannot start on .*{tmp_path.name}"):
        start(view=damaged)


@pytest.mark.slow
@pytest.mark.usefixtures("no_process_is_left")
def test_embeddings_without_effect_are_found_before_the_first_request(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlcore.engines.vllm import requests
    from vlcore.engines.vllm.translation import VllmPrompt, to_vllm_prompt

    def without_rows(prompt: Any, generated: Any) -> VllmPrompt:
        translated = to_vllm_prompt(prompt, generated)
        if translated.embeddings is not None:
            translated.embeddings.fill_(0.5)
        return translated

    monkeypatch.setattr(requests, "to_vllm_prompt", without_rows)
    with pytest.raises(EngineUnavailableError, match=r"does not run with this vLLM 0\.3\d"):
        start()


@pytest.mark.slow
@pytest.mark.usefixtures("no_process_is_left")
@pytest.mark.parametrize("killed", ["core", "worker"])
def test_a_process_that_is_killed_ends_every_request_with_an_error(
    start: Start, killed: str
) -> None:
    engine = start(self_test=False)
    assert engine.failure is None

    async def body() -> None:
        assert len(await answer(engine, request(4))) == 8
        asked = request(4, max_new_tokens=LONG)
        async with aclosing(engine.generate(asked)) as one, aclosing(engine.generate(asked)) as two:
            await anext(one)
            await anext(two)
            (core,) = engine._llm.engine_core.resources.engine_manager.processes
            (worker,) = psutil.Process(core.pid).children()
            os.kill({"core": core, "worker": worker}[killed].pid, signal.SIGKILL)
            for generated in (one, two):
                with pytest.raises(EngineClosedError, match="vLLM's engine process has ended"):
                    async for _ in generated:
                        pass
        await until(lambda: engine.failure)
        with pytest.raises(EngineClosedError, match="engine process has ended"):
            await answer(engine, request(4))
        await until(lambda: engine.stats() == EngineStats(0, 0))
        await engine.close()

    run(body)


@pytest.mark.slow
def test_closing_ends_running_requests(start: Start, language_model: Any) -> None:
    engine = start(self_test=False)
    assert engine._dtype is torch.float32

    async def body() -> None:
        generated = engine.generate(request(4, max_new_tokens=LONG))
        await anext(generated)
        closing = asyncio.create_task(engine.close())
        with pytest.raises(EngineClosedError, match="closed while it served"):
            async for _ in generated:
                pass
        await closing
        await engine.close()
        with pytest.raises(EngineClosedError):
            await answer(engine, request(4))

    run(body)

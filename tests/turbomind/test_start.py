"""Starting TurboMind: its settings, its self-test, and what may go wrong."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine_requests import request
from safetensors.torch import load_file

from vlcore._version import __version__
from vlcore.engines.external.self_test import read_rows
from vlcore.engines.turbomind.engine import TurbomindEngine
from vlcore.errors import EngineUnavailableError
from vlcore.language.model import LanguageModel

if importlib.util.find_spec("lmdeploy") is None:
    pytest.skip("lmdeploy is not installed: make test-turbomind", allow_module_level=True)

if TYPE_CHECKING:
    from turbomind_stand_in import Communicator

Start = Callable[..., TurbomindEngine]


@pytest.fixture
def start(language_model: LanguageModel, view: Path, communicators: list[Communicator]) -> Start:
    def start(**settings: Any) -> TurbomindEngine:
        made = TurbomindEngine(
            language_model,
            language_model.tokenizer(),
            view,
            device=torch.device("cuda", 3),
            dtype=torch.float16,
            **settings,
        )
        asyncio.run(made.close())
        return made

    return start


def test_the_self_test_injects_token_embeddings(
    start: Start, communicators: list[Communicator]
) -> None:
    start()
    asked = communicators[-1].asked
    assert len(asked) == 8
    for plain, injected in zip(asked[::2], asked[1::2], strict=True):
        assert plain.embeddings is None
        assert injected.ranges == [[3, 14]]
        assert plain.token_ids[:3] + plain.token_ids[14:] == (
            injected.token_ids[:3] + injected.token_ids[14:]
        )
        assert set(injected.token_ids[3:14]) == {plain.token_ids[0]}
    assert communicators[-1].faults == []


def test_the_self_test_reads_rows_of_the_token_embedding(view: Path) -> None:
    rows = read_rows(view, "model.embed_tokens.weight", [5, 699, 0])
    (table,) = (
        tensors["model.embed_tokens.weight"]
        for tensors in map(load_file, view.glob("*.safetensors"))
        if "model.embed_tokens.weight" in tensors
    )
    assert torch.equal(rows, table[[5, 699, 0]])


def test_the_self_test_can_be_switched_off(start: Start, communicators: list[Communicator]) -> None:
    start(self_test=False)
    assert communicators[-1].asked == []


def test_an_engine_that_misinterprets_embeddings_does_not_start(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    import turbomind_stand_in as stand_in

    logits = stand_in.Request._logits

    def without_rows(self: Any, asked: Any, token_ids: list[int]) -> torch.Tensor:
        from dataclasses import replace

        return logits(self, replace(asked, embeddings=None), token_ids)

    monkeypatch.setattr(stand_in.Request, "_logits", without_rows)
    versions = rf"vlcore {re.escape(__version__)} does not run with this lmdeploy 0\."
    with pytest.raises(EngineUnavailableError, match=versions):
        start()


def test_default_settings_follow_the_model(start: Start, communicators: list[Communicator]) -> None:
    start()
    config = communicators[-1].engine_config
    assert config.devices == [3]
    assert config.session_len == 512
    assert config.data_type.name == "TYPE_FP16"


def test_lmdeploys_settings_are_passed_on_as_they_are(
    start: Start, communicators: list[Communicator]
) -> None:
    from lmdeploy import TurbomindEngineConfig

    settings = TurbomindEngineConfig(
        dtype="bfloat16",
        session_len=96,
        cache_max_entry_count=0.25,
        quant_policy=8,
        max_batch_size=5,
        enable_prefix_caching=True,
    )
    before = repr(settings)
    made = start(config=settings)
    assert repr(settings) == before
    config = communicators[-1].engine_config
    assert config.session_len == made.context_length == 96
    assert config.cache_max_block_count == 0.25
    assert int(config.quant_policy) == 8
    assert config.max_batch_size == 5
    assert config.enable_prefix_caching
    assert config.data_type.name == "TYPE_BF16"
    assert made._dtype is torch.bfloat16


def test_a_longer_session_makes_no_longer_context(start: Start) -> None:
    from lmdeploy import TurbomindEngineConfig

    made = start(config=TurbomindEngineConfig(session_len=4096))
    assert made.context_length == 512


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("[TM][ERROR] CUDA runtime error: out of memory allocator.cc:54"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
def test_an_out_of_memory_error_at_start_suggests_settings(
    start: Start, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    import turbomind_stand_in as stand_in

    def fail(self: Any, device: int) -> None:
        raise failure

    monkeypatch.setattr(stand_in.Communicator, "create_engine", fail)
    with pytest.raises(
        EngineUnavailableError, match=r"\(lmdeploy 0\..* cannot start on .*out of memory.*\. Free "
    ):
        start()


def test_a_first_request_that_fails_is_reported(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    import turbomind_stand_in as stand_in

    monkeypatch.setattr(stand_in.Request, "_refusal", lambda *_: 11)
    with pytest.raises(
        EngineUnavailableError, match=r"failed its first request: .* raise cache_max_entry_count"
    ):
        start()


def test_a_view_that_lacks_a_tensor_is_reported(
    start: Start, monkeypatch: pytest.MonkeyPatch, language_model: LanguageModel, tmp_path: Path
) -> None:
    damaged = language_model.write_view(tmp_path / "view")
    index = damaged / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model.norm.weight", "model.abnorm.weight"))
    with pytest.raises(EngineUnavailableError, match=r"cannot start on .*KeyError.*norm\.weight"):
        TurbomindEngine(
            language_model,
            language_model.tokenizer(),
            damaged,
            device=torch.device("cuda", 0),
            dtype=torch.float16,
        )


def test_an_extension_module_without_its_libraries_is_an_error(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmdeploy import turbomind

    monkeypatch.setattr(turbomind, "is_available", lambda: False)
    monkeypatch.setattr(turbomind, "_import_error", OSError("libcublas.so.12: cannot open"))
    with pytest.raises(EngineUnavailableError, match=r"load TurboMind: libcublas.*nvidia-cublas"):
        start()


def test_lmdeploy_leaves_the_callers_logging_alone(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    handler = logging.StreamHandler()
    handler.setLevel(logging.DEBUG)
    logging.root.addHandler(handler)
    try:
        for name in [name for name in sys.modules if name.split(".")[0] == "lmdeploy"]:
            if name in ("lmdeploy", "lmdeploy.utils"):
                monkeypatch.delitem(sys.modules, name)
        start(self_test=False)
        assert handler.level == logging.DEBUG
    finally:
        logging.root.removeHandler(handler)


def test_lmdeploy_loads_the_tensors_of_the_view(
    start: Start, view: Path, communicators: list[Communicator]
) -> None:
    start(self_test=False)
    text_model = communicators[-1].loaded.children["text_model"]
    stored: dict[str, torch.Tensor] = {}
    for file in view.glob("*.safetensors"):
        stored |= load_file(file)
    half = {name: tensor.half() for name, tensor in stored.items()}
    assert torch.equal(text_model.tensors["tok_embeddings"], stored["model.embed_tokens.weight"])
    assert torch.equal(text_model.children["output"].tensors["weight"], half["lm_head.weight"].T)
    layers = text_model.children["layers"].children
    assert len(layers) == len([name for name in stored if name.endswith("down_proj.weight")])
    for number, layer in layers.items():
        prefix = f"model.layers.{number}"
        feed_forward = layer.children["feed_forward"].children
        down = feed_forward["w2"].tensors["weight"]
        assert torch.equal(down, half[f"{prefix}.mlp.down_proj.weight"].T)
        out = layer.children["attention"].children["wo"].tensors["weight"]
        assert torch.equal(out, half[f"{prefix}.self_attn.o_proj.weight"].T)


def test_a_started_engine_answers(engine: TurbomindEngine, communicator: Communicator) -> None:
    async def body() -> None:
        chunks = [chunk async for chunk in engine.generate(request(5))]
        assert chunks[-1].finish_reason == "length"

    asyncio.run(body())

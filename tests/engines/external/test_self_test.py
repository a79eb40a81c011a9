from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import torch
from checkpoints import write_json
from safetensors.torch import save_file
from torch import Tensor

from vlcore._version import __version__
from vlcore.engines.base import Engine, EngineOutput, EngineRequest, EngineStats
from vlcore.engines.external.self_test import next_logits, read_rows, run_self_test
from vlcore.errors import EngineUnavailableError

NAME = "model.embed_tokens.weight"
TABLE = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


class TableEngine(Engine):
    """Its logits are the dot products of the table with a prompt's mean embedding."""

    name = "table"
    hidden_size = 8
    vocab_size = 40
    context_length = 64

    def __init__(self, *, injects: bool = True, noise: float = 0.0) -> None:
        self.injects = injects
        self.noise = noise
        self.num_asked = 0

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput]:
        self.check(request)
        self.num_asked += 1
        embeddings = TABLE[list(request.prompt.token_ids)].clone()
        for span in request.prompt.spans:
            rows: Tensor = request.rows[0] if self.injects else TABLE[:1]
            embeddings[span.start : span.stop] = rows + self.noise
        logits = embeddings.mean(dim=0) @ TABLE.T
        yield EngineOutput("", (int(logits.argmax()),), "length", logits=logits[None])

    async def close(self) -> None: ...

    def stats(self) -> EngineStats:
        return EngineStats(0, 0)


@pytest.fixture
def view(tmp_path: Path) -> Path:
    save_file({NAME: TABLE}, tmp_path / "copied-00001.safetensors")
    index = {"weight_map": {NAME: "copied-00001.safetensors"}}
    write_json(tmp_path / "model.safetensors.index.json", index)
    return tmp_path


def test_embeddings_are_read_by_token_id(view: Path) -> None:
    assert torch.equal(read_rows(view, NAME, [39, 0, 7]), TABLE[[39, 0, 7]])


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_an_engine_that_injects_embeddings_passes(view: Path, noise: float) -> None:
    engine = TableEngine(noise=noise)
    asyncio.run(run_self_test(engine, view, NAME, next_logits, "library 0.18.9"))
    assert engine.num_asked == 8


def test_an_engine_that_ignores_embeddings_is_refused_with_both_versions(
    view: Path,
) -> None:
    expected = rf"vlcore {re.escape(__version__)} does not run with this library 0\.18\.9"
    for engine in (TableEngine(injects=False), TableEngine(noise=torch.nan)):
        with pytest.raises(EngineUnavailableError, match=expected):
            asyncio.run(run_self_test(engine, view, NAME, next_logits, "library 0.18.9"))


def test_a_token_embedding_of_another_width_is_refused(view: Path) -> None:
    engine = TableEngine()
    engine.hidden_size = 16
    with pytest.raises(EngineUnavailableError, match=r"has width 8; .* has width 16"):
        asyncio.run(run_self_test(engine, view, NAME, next_logits, "library 0.18.9"))

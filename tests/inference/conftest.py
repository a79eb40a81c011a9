"""A checkpoint and pipelines that the tests of pipelines share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_llava

from vlcore.inference.factory import pipeline
from vlcore.inference.pipeline import Pipeline


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that no test changes."""
    return write_llava(tmp_path_factory.mktemp("pipeline") / "llava")


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> Iterator[Pipeline]:
    """A pipeline for all tests of a module."""
    with pipeline(checkpoint, device="cpu", dtype="float32") as made:
        yield made


@pytest.fixture
def fresh(checkpoint: Path) -> Iterator[Pipeline]:
    """A pipeline whose counts are zero, or that a test closes."""
    with pipeline(checkpoint, device="cpu", dtype="float32") as made:
        yield made

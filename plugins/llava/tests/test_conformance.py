"""The plugin keeps the contract, by the conformance kit: here the original layout, with tiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import write_llava

from vlcore.testing import PluginConformance


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(
        tmp_path_factory.mktemp("llava"),
        image_aspect_ratio="anyres",
        mm_patch_merge_type="spatial_unpad",
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
    )


class TestLlava(PluginConformance):
    plugin = "vl-plugin-llava"

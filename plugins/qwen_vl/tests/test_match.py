from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import vl_plugin_qwen
from checkpoints import write_json
from golden_cases import GOLDEN

import vlcore
from vlcore import NoPluginError
from vlcore.plugins import find_plugin


@pytest.mark.parametrize("case", ["qwen_vl", "qwen_vl_vision"])
def test_a_visual_block_is_evidence(case: str) -> None:
    config = json.loads((GOLDEN / case / "config.json").read_text())
    assert find_plugin(config).info.distribution == "vl-plugin-qwen"


@pytest.mark.parametrize(
    ("visual", "reason"),
    [
        ({}, "no visual block: it is a text-only Qwen"),
        ({"visual": None}, "no visual block"),
        ({"visual": [448]}, "visual in config.json must be an object, not list"),
    ],
)
def test_a_text_only_checkpoint_is_refused_with_the_reason(
    tmp_path: Path, visual: dict[str, Any], reason: str
) -> None:
    write_json(tmp_path / "config.json", {"architectures": ["QWenLMHeadModel"], **visual})
    with pytest.raises(NoPluginError, match=reason) as caught:
        vlcore.load_vision_model(tmp_path)
    assert "vl-plugin-qwen" in str(caught.value)


def test_the_hooks_import_no_torch() -> None:
    program = "import vl_plugin_qwen, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert vl_plugin_qwen.vl_match({"visual": {}}) is True

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import write_llava
from qwen_checkpoints import write_qwen
from typer.testing import CliRunner

from vlcore import ViewCache, ViewError
from vlcore.cli import app


def test_a_view_is_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLCORE_CACHE", str(tmp_path / "cache"))
    result = CliRunner().invoke(app, ["view", str(write_llava(tmp_path / "model"))])
    assert result.exit_code == 0, result.output
    (view,) = ViewCache().views()
    assert result.stdout == f"{view.path}\n"
    assert result.stderr == "[LlamaForCausalLM, 512 tokens]\n"
    again = CliRunner().invoke(app, ["view", str(tmp_path / "model")])
    assert again.stdout == result.stdout


def test_a_view_is_written_to_the_given_directory(tmp_path: Path) -> None:
    model = str(write_qwen(tmp_path / "model"))
    result = CliRunner().invoke(app, ["view", model, str(tmp_path / "view")])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'view'}\n"
    assert (tmp_path / "view" / "copied-00001.safetensors").is_file()
    assert "[Qwen2ForCausalLM, 2048 tokens, because beyond seq_length 2048" in result.stderr


def test_an_existing_directory_is_reported(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["view", str(write_llava(tmp_path / "model")), str(tmp_path)])
    assert isinstance(result.exception, ViewError)
    assert "is not empty" in str(result.exception)

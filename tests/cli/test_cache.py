from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import write_llava
from typer.testing import CliRunner, Result

import vlcore
from vlcore import OptionError, ViewCache
from vlcore.cli import app


@pytest.fixture(autouse=True)
def views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "views"


def keep_view(directory: Path) -> Path:
    return ViewCache().get(vlcore.load_language_model(write_llava(directory)))


def cache(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["cache", *arguments], env={"COLUMNS": "200"})


def test_an_empty_cache_is_reported(views: Path) -> None:
    assert cache().stdout == f"no text views in {views}\n"
    assert json.loads(cache("--json").stdout) == []


def test_the_table_lists_cached_views(views: Path, tmp_path: Path) -> None:
    view = keep_view(tmp_path / "model")
    result = cache()
    assert result.exit_code == 0, result.output
    heading, _, columns, line = result.stdout.splitlines()
    assert heading == f"Text views in {views}"
    assert columns.split() == ["view", "size", "created", "model"]
    assert line.split()[0] == view.name
    assert line.split()[1:3] == [line.split()[1], "KiB"]
    assert line.split()[-1] == str(tmp_path / "model")


def test_json(tmp_path: Path) -> None:
    view = keep_view(tmp_path / "model")
    (listed,) = json.loads(cache("--json").stdout)
    assert listed.keys() == {"name", "model", "path", "num_bytes", "made"}
    assert (listed["name"], listed["path"]) == (view.name, str(view))


def test_one_is_cleared_by_its_name_and_all_without(views: Path, tmp_path: Path) -> None:
    first, second = keep_view(tmp_path / "first"), keep_view(tmp_path / "second")
    result = cache("--clear", first.name)
    assert result.stdout.startswith("removed 1 view(s), ")
    assert result.stdout.endswith(f" KiB, from {views}\n")
    assert [view.path for view in ViewCache().views()] == [second]
    assert cache("--clear").stdout.startswith("removed 1 view(s)")
    assert cache("--clear").stdout == f"removed 0 view(s), 0 bytes, from {views}\n"


def test_an_unknown_name_is_an_error() -> None:
    result = cache("nope")
    assert isinstance(result.exception, OptionError)
    assert "holds no view with the name or model 'nope'" in str(result.exception)

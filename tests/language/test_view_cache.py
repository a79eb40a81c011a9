from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import write_llava
from filelock import FileLock
from qwen_checkpoints import write_qwen
from weight_files import FakeHub

import vlcore
from vlcore import Checkpoint, OptionError, ViewCache, ViewError


@pytest.fixture
def cache(tmp_path: Path) -> ViewCache:
    return ViewCache(tmp_path / "views")


def get(cache: ViewCache, directory: Path | str) -> Path:
    return cache.get(vlcore.load_language_model(directory))


def test_a_view_is_written_once(cache: ViewCache, tmp_path: Path) -> None:
    directory = write_qwen(tmp_path / "my model")
    first = get(cache, directory)
    assert first.parent == cache.root
    assert first.name.startswith("my-model-")
    written = {path.name: path.lstat().st_mtime_ns for path in first.iterdir()}
    assert get(cache, directory) == first
    assert {path.name: path.lstat().st_mtime_ns for path in first.iterdir()} == written
    assert [path.name for path in cache.root.iterdir()] == [first.name]


def test_a_checkpoint_that_changed_gets_another_view(cache: ViewCache, tmp_path: Path) -> None:
    first = get(cache, write_llava(tmp_path / "model"))
    second = get(cache, write_llava(tmp_path / "model", seed=1))
    assert first != second
    assert {view.path for view in cache.views(str(tmp_path / "model"))} == {first, second}


def test_a_relative_path_leads_to_the_same_view(
    cache: ViewCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_llava(tmp_path / "model")
    monkeypatch.chdir(directory)
    assert get(cache, ".") == get(cache, directory) == get(cache, "../model")


def test_a_hub_checkpoint_has_one_view_whatever_has_been_downloaded(
    cache: ViewCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path / "hub", monkeypatch)
    hub.repositories["maker/llava"] = write_llava(tmp_path / "repository")
    first = get(cache, "maker/llava")
    assert first.name.startswith("llava-")
    checkpoint = Checkpoint.open("maker/llava")
    checkpoint.fingerprint  # noqa: B018
    assert get(cache, "maker/llava") == first
    (view,) = cache.views("maker/llava")
    assert view.model == "maker/llava"


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("VLCORE_CACHE", "mine/views"), ("XDG_CACHE_HOME", "mine/vlcore/views")],
)
def test_the_directory_is_configurable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, expected: str
) -> None:
    monkeypatch.delenv("VLCORE_CACHE")
    monkeypatch.setenv(variable, str(tmp_path / "mine"))
    assert ViewCache().root == tmp_path / expected


def test_views_are_listed(cache: ViewCache, tmp_path: Path) -> None:
    assert cache.views() == []
    linked = get(cache, write_llava(tmp_path / "linked"))
    copied = get(cache, write_qwen(tmp_path / "copied"))
    views = {view.path: view for view in cache.views()}
    assert views.keys() == {linked, copied}
    assert views[linked].model == str(tmp_path / "linked")
    assert views[linked].made.startswith("20")
    weights = (tmp_path / "copied" / "model.safetensors").stat().st_size
    assert views[linked].num_bytes < 20_000 < views[copied].num_bytes < weights + 200_000


def test_the_views_of_a_name_or_model_are_cleared(cache: ViewCache, tmp_path: Path) -> None:
    paths = [get(cache, write_llava(tmp_path / f"model{i}")) for i in range(3)]
    assert [view.path for view in cache.clear(paths[0].name)] == [paths[0]]
    assert [view.path for view in cache.clear(str(tmp_path / "model1"))] == [paths[1]]
    assert [view.path for view in cache.views()] == [paths[2]]
    cache.clear()
    assert list(cache.root.iterdir()) == []
    assert all((tmp_path / f"model{i}" / "model.safetensors").is_file() for i in range(3))


def test_an_unknown_name_is_reported(cache: ViewCache, tmp_path: Path) -> None:
    kept = get(cache, write_llava(tmp_path / "model"))
    with pytest.raises(
        OptionError, match=rf"no view with the name or model 'nope'. Its views: {kept.name}"
    ):
        cache.clear("nope")
    assert kept.is_dir()


def test_a_damaged_view_is_reported_with_the_command_that_clears_it(
    cache: ViewCache, tmp_path: Path
) -> None:
    directory = write_llava(tmp_path / "model")
    view = get(cache, directory)
    (view / "config.json").write_text("{}")
    command = f"vlcore cache --clear {view.name}"
    with pytest.raises(ViewError, match=rf"config\.json has 2 bytes .*`{command}`"):
        get(cache, directory)
    cache.clear(view.name)
    assert get(cache, directory) == view


def test_an_unfinished_view_is_listed_and_cleared(
    cache: ViewCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_qwen(tmp_path / "model")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "tensors", stop)
        with pytest.raises(KeyboardInterrupt):
            get(cache, directory)
    (view,) = cache.views()
    assert (view.model, view.made) == (str(directory), "")
    assert view.path.name == f"{view.name}.partial"
    cache.clear(view.name)
    assert list(cache.root.iterdir()) == []


def test_a_view_with_a_damaged_manifest_is_listed_and_cleared(
    cache: ViewCache, tmp_path: Path
) -> None:
    view = get(cache, write_llava(tmp_path / "model"))
    (view / "vlcore-view.json").write_text("[]")
    assert [(view.model, view.made) for view in cache.views()] == [("", "")]
    cache.clear()
    assert cache.views() == []


def test_a_view_that_is_being_written_is_not_cleared(cache: ViewCache, tmp_path: Path) -> None:
    view = get(cache, write_llava(tmp_path / "model"))
    with (
        FileLock(cache.root / f"{view.name}.lock"),
        pytest.raises(ViewError, match="is being written by another process"),
    ):
        cache.clear()
    assert view.is_dir()


def test_a_progress_bar_is_shown_on_request(
    cache: ViewCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    language_model = vlcore.load_language_model(write_qwen(tmp_path / "model"))
    cache.get(language_model, progress=True)
    assert "writing the text view" in capsys.readouterr().err


def test_the_index_of_a_cached_view_lists_only_the_language_model(
    cache: ViewCache, tmp_path: Path
) -> None:
    view = get(cache, write_llava(tmp_path / "model"))
    index = json.loads((view / "model.safetensors.index.json").read_text())["weight_map"]
    assert not any("vision" in name or "mm_projector" in name for name in index)

"""A plugin at work in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributions import Site, make_site
from patchwork import NAME, install_patchwork, write_patchwork

from vlcore.testing.watch import _plant, watch


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from make_site(tmp_path / "site", monkeypatch)


def test_what_ends_the_work_is_told(site: Site, tmp_path: Path) -> None:
    install_patchwork(site, {'config["patch_size"]': 'config["patch"]'})
    checkpoint = write_patchwork(tmp_path / "model")
    (tmp_path / "work").mkdir()
    watched = watch(NAME, site.modules[0], checkpoint, tmp_path / "work")
    assert watched.deeds == ()
    assert "KeyError: 'patch'" in watched.error


def test_a_process_that_ends_is_told(site: Site, tmp_path: Path) -> None:
    install_patchwork(site)
    checkpoint = write_patchwork(tmp_path / "model")
    (tmp_path / "work").mkdir()
    watched = watch("vl-plugin-none", site.modules[0], checkpoint, tmp_path / "work")
    assert watched.error.startswith("its process ended with 1: ")
    assert "Traceback" in watched.error


def test_the_copy_of_a_checkpoint_offers_remote_code_and_leaves_the_original(
    tmp_path: Path,
) -> None:
    original = tmp_path / "original"
    (original / "tower").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tower/config.json"):
        (original / name).write_text('{"x": 1}')
    (original / "linked").symlink_to(original / "tower")
    _plant(original, tmp_path / "copy")
    copied = sorted(path.relative_to(tmp_path / "copy") for path in (tmp_path / "copy").rglob("*"))
    assert [path.as_posix() for path in copied] == [
        "config.json",
        "linked",
        "model.safetensors",
        "tower",
        "tower/config.json",
        "vlcore_planted_code.py",
    ]
    assert '"auto_map"' in (tmp_path / "copy" / "config.json").read_text()
    assert (original / "config.json").read_text() == '{"x": 1}'

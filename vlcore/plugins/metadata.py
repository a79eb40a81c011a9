"""The installed plugins, as described by the metadata of their distributions.

No plugin is imported to list it. Two environment variables with comma-separated distribution names
restrict which plugins are used: ``VLCORE_ALLOW_PLUGINS`` (only these) and ``VLCORE_BLOCK_PLUGINS``
(not these).
"""

from __future__ import annotations

import keyword
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import cast

import importlib_metadata
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from vlcore import hookspecs
from vlcore._version import __version__

ALLOW_VARIABLE = "VLCORE_ALLOW_PLUGINS"
BLOCK_VARIABLE = "VLCORE_BLOCK_PLUGINS"

logger = logging.getLogger(__name__)
_import_failures: dict[str, str] = {}


class PluginState(StrEnum):
    """The state of an installed plugin."""

    READY = "ready"
    BLOCKED = "blocked"
    INCOMPATIBLE = "incompatible"
    """It requires another version of vlcore."""
    CONFLICT = "conflict"
    """Another distribution contains the same module, and one has overwritten the other."""
    BROKEN = "broken"
    """It cannot be imported, or violates the plugin contract."""


@dataclass(frozen=True)
class PluginInfo:
    """An installed plugin, as described by the metadata of its distribution."""

    distribution: str
    version: str
    modules: Mapping[str, str]
    """The plugin module of each architecture name."""
    state: PluginState
    reason: str = ""
    """Why the plugin is not ready; empty if it is."""
    requires: str = ""
    """The required versions of vlcore, such as ``"<0.2,>=0.1"``; empty if none are stated."""
    warnings: tuple[str, ...] = ()
    """A message for each entry point that is ignored, with the reason."""
    import_ms: float | None = field(default=None, compare=False)
    """The duration of its import, in milliseconds; ``None`` if it was not imported."""
    generic_architectures: frozenset[str] = frozenset()
    """Those of its architecture names for which it is generic: it is used for them only where no
    other plugin serves the checkpoint."""

    @property
    def architectures(self) -> tuple[str, ...]:
        """The ``architectures`` names that it registers, sorted."""
        return tuple(sorted(self.modules))

    @property
    def own_architectures(self) -> tuple[str, ...]:
        """The names for which it is not generic, sorted."""
        return tuple(sorted(self.modules.keys() - self.generic_architectures))


def describe_architectures(info: PluginInfo) -> str:
    """List the architectures of a plugin; those for which it is generic are only counted."""
    names = list(info.own_architectures)
    if info.generic_architectures:
        names.append(f"{len(info.generic_architectures)} architectures as a generic plugin")
    return ", ".join(names)


def installed_plugins() -> list[PluginInfo]:
    """List every installed plugin by name, without importing any of them."""
    plugins: dict[str, PluginInfo] = {}
    locations: dict[str, str] = {}
    for distribution in importlib_metadata.distributions():
        try:
            info = _read_distribution(cast("importlib_metadata.Distribution", distribution))
        except Exception:
            # A damaged distribution must not hide the others.
            logger.debug("unreadable distribution %r", distribution, exc_info=True)
            continue
        if info is None:
            continue
        name = canonicalize_name(info.distribution)
        location = str(distribution.locate_file(""))
        if name not in plugins:
            plugins[name] = info
            locations[name] = location
        elif location != locations[name]:
            plugins[name] = _with_duplicate(plugins[name], locations[name], info, location)
    return _with_conflicts([plugins[name] for name in sorted(plugins)])


def _with_duplicate(
    used: PluginInfo, location: str, ignored: PluginInfo, ignored_location: str
) -> PluginInfo:
    """Add a warning about a second installation of a plugin, such as one that an upgrade left."""
    warning = (
        f"{used.distribution} is installed twice: version {used.version} in {location} is used, "
        f"version {ignored.version} in {ignored_location} is ignored. Uninstall one"
    )
    return replace(used, warnings=(*used.warnings, warning))


def shared_architectures(plugins: Iterable[PluginInfo]) -> dict[str, tuple[str, ...]]:
    """Return the distributions for each architecture name that several plugins register.

    This is not a conflict: ``vl_match`` of each decides which checkpoints of that name it serves.
    """
    owners: dict[str, list[str]] = {}
    for info in plugins:
        for architecture in info.architectures:
            owners.setdefault(architecture, []).append(info.distribution)
    return {name: tuple(found) for name, found in owners.items() if len(found) > 1}


def record_failure(info: PluginInfo, reason: str) -> None:
    """Record why a plugin could not be used, for later listings."""
    _import_failures[info.distribution] = reason


def _with_conflicts(plugins: Sequence[PluginInfo]) -> list[PluginInfo]:
    owners: dict[str, list[str]] = {}
    for info in plugins:
        if info.state not in (PluginState.BLOCKED, PluginState.INCOMPATIBLE):
            for module in set(info.modules.values()):
                owners.setdefault(module, []).append(info.distribution)
    return [_in_conflict(info, owners) for info in plugins]


def _in_conflict(info: PluginInfo, owners: Mapping[str, Sequence[str]]) -> PluginInfo:
    """Mark a ready plugin whose module is also in another distribution."""
    if info.state is not PluginState.READY:
        return info
    for module in sorted(set(info.modules.values())):
        if others := [name for name in owners[module] if name != info.distribution]:
            reason = (
                f"{' and '.join(others)} registers the same module {module!r}: uninstall one, or "
                f"hide it with {BLOCK_VARIABLE}={others[0]}"
            )
            return replace(info, state=PluginState.CONFLICT, reason=reason)
    return info


def _read_distribution(distribution: importlib_metadata.Distribution) -> PluginInfo | None:
    entry_points = [
        entry_point
        for group in (hookspecs.ENTRY_POINT_GROUP, hookspecs.GENERIC_GROUP)
        for entry_point in distribution.entry_points.select(group=group)
    ]
    if not entry_points:
        return None
    modules: dict[str, str] = {}
    generic = set()
    warnings = []
    for entry_point in entry_points:
        name, module = entry_point.name, entry_point.value
        if not name.isidentifier() or keyword.iskeyword(name):
            warnings.append(f"its entry point {name!r} is ignored: it is not a valid class name")
        elif name in modules:
            warnings.append(
                f"its entry point {name} is registered twice: {modules[name]!r} is used, "
                f"{module!r} is ignored"
            )
        else:
            modules[name] = module
            if entry_point.group == hookspecs.GENERIC_GROUP:
                generic.add(name)
    metadata = distribution.metadata  # parsed at each access
    name, version = metadata["Name"], metadata["Version"]
    if not name or not version:
        raise ValueError("its metadata states no name or no version")
    requirements = metadata.get_all("Requires-Dist") or distribution.requires or ()
    state, reason, requires = _state_of(name, requirements)
    if state is PluginState.READY and not modules:
        state, reason = PluginState.BROKEN, "it registers no valid architecture name"
    return PluginInfo(
        name,
        version,
        modules,
        state,
        reason,
        requires,
        tuple(warnings),
        generic_architectures=frozenset(generic),
    )


def _state_of(name: str, requirements: Iterable[str]) -> tuple[PluginState, str, str]:
    """Return the state, the reason for it, and the required versions of vlcore."""
    incompatibility, requires = _check_requirements(name, requirements)
    normalised = canonicalize_name(name)
    allowed = _names_in(ALLOW_VARIABLE)
    if allowed is not None and normalised not in allowed:
        return PluginState.BLOCKED, f"not in {ALLOW_VARIABLE}", requires
    if normalised in (_names_in(BLOCK_VARIABLE) or ()):
        return PluginState.BLOCKED, f"named in {BLOCK_VARIABLE}", requires
    if incompatibility:
        return PluginState.INCOMPATIBLE, incompatibility, requires
    if name in _import_failures:
        return PluginState.BROKEN, _import_failures[name], requires
    return PluginState.READY, "", requires


def _check_requirements(name: str, requirements: Iterable[str]) -> tuple[str, str]:
    """Return why a plugin is incompatible (or ""), and the required versions of vlcore."""
    specifiers: list[str] = []
    incompatibility = ""
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            return f"its Requires-Dist {text!r} is malformed: {error}", ""
        if canonicalize_name(requirement.name) != "vlcore":
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        specifiers.append(str(requirement.specifier))
        if not requirement.specifier.contains(__version__, prereleases=True):
            incompatibility = (
                f"it requires vlcore{requirement.specifier} and vlcore {__version__} is "
                f"installed: pip install --upgrade {name} vlcore"
            )
    return incompatibility, ",".join(filter(None, specifiers))


def _names_in(variable: str) -> set[str] | None:
    value = os.environ.get(variable)
    if not value:
        return None
    return {canonicalize_name(name.strip()) for name in value.split(",") if name.strip()}

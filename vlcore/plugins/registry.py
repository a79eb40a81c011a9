"""Finds the installed plugin that serves a checkpoint.

This imports only the candidates: the plugins with an entry point for one of the checkpoint's
``architectures``.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING, Any

import pluggy
from packaging.utils import canonicalize_name

from vlcore import hookspecs
from vlcore._version import __version__
from vlcore.checkpoint.files import CheckpointFiles
from vlcore.errors import (
    ConfigError,
    IncompatiblePluginError,
    NoPluginError,
    OptionError,
    PluginConflictError,
    PluginContractError,
    PluginError,
    PluginImportError,
)
from vlcore.plugins.metadata import (
    BLOCK_VARIABLE,
    PluginInfo,
    PluginState,
    describe_architectures,
    installed_plugins,
    record_failure,
)

if TYPE_CHECKING:
    import torch

    from vlcore._utils.device_map import DeviceMap, MaxMemory
    from vlcore.checkpoint.checkpoint import Checkpoint

__all__ = [
    "BLOCK_VARIABLE",
    "Plugin",
    "PluginInfo",
    "PluginState",
    "find_plugin",
    "installed_plugins",
    "load_plugin",
]

_HOOK_NAMES = ("vl_match", "vl_vision_model", "vl_chat_template", "vl_language_model")

logger = logging.getLogger(__name__)


class Plugin:
    """An imported plugin, whose hooks are called through a plugin manager of its own."""

    def __init__(self, info: PluginInfo, module_name: str) -> None:
        """Import ``module_name`` and check its hooks.

        Raises:
            PluginImportError: the module cannot be imported.
            PluginContractError: a hook is missing, misspelt or has a wrong signature.
        """
        self.info = info
        self._manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
        self._manager.add_hookspecs(hookspecs)
        try:
            with redirect_stdout(sys.stderr):  # its output must not mix with that of a command
                module = _import(module_name)
        except (Exception, SystemExit) as error:
            raise PluginImportError(
                f"plugin {info.distribution} {info.version} cannot be imported: "
                f"module {module_name!r} raised {type(error).__name__}: {error}. "
                f"Reinstall it, or hide it with {BLOCK_VARIABLE}={info.distribution}"
            ) from error
        try:
            self._manager.register(module, info.distribution)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginContractError(
                f"plugin {info.distribution} {info.version} does not match the hooks of vlcore "
                f"{__version__}: {error}"
            ) from error
        implemented = {caller.name for caller in self._manager.get_hookcallers(module) or ()}
        if missing := [name for name in _HOOK_NAMES if name not in implemented]:
            raise PluginContractError(
                f"plugin {info.distribution} {info.version} lacks the hook(s) "
                f"{', '.join(missing)}: define them in {module_name!r} and mark each with "
                "vlcore.hookimpl"
            )

    def mismatch(
        self, config: Mapping[str, Any], files: CheckpointFiles | None = None
    ) -> str | None:
        """Return why the plugin does not serve a checkpoint, or ``None`` if it does.

        Args:
            config: the ``config.json`` of the checkpoint.
            files: its metadata files; ``None`` if there is only a configuration.
        """
        files = CheckpointFiles() if files is None else files
        try:
            result: object = self._manager.hook.vl_match(config=config, files=files)
        except ConfigError as error:  # a file that the plugin read is damaged
            return str(error)
        except (Exception, SystemExit) as error:
            logger.warning("vl_match of %s raised", self.info.distribution, exc_info=True)
            return f"its vl_match raised {type(error).__name__}: {error}"
        if result is True:
            return None
        if isinstance(result, str) and result:
            return result
        return f"its vl_match returned {result!r} instead of True or a reason (str)"

    def vision_model(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        device_map: DeviceMap | None = None,
        max_memory: MaxMemory | None = None,
    ) -> object:
        """Call ``vl_vision_model``.

        Raises:
            OptionError: ``device_map`` or ``max_memory`` is given, and the hook has no such
                argument.
        """
        hook = self._manager.hook.vl_vision_model
        arguments = _argument_names(hook)
        if device_map is not None and "device_map" not in arguments:
            raise OptionError(
                f"plugin {self.info.distribution} {self.info.version} cannot distribute its "
                "vision model over devices: leave device_map and max_memory out"
            )
        if max_memory is not None and "max_memory" not in arguments:
            raise OptionError(
                f"plugin {self.info.distribution} {self.info.version} does not accept max_memory: "
                "leave it out, or give the device of each module in device_map"
            )
        return hook(
            checkpoint=checkpoint,
            device=device,
            dtype=dtype,
            device_map=device_map,
            max_memory=max_memory,
        )

    def chat_template(self, checkpoint: Checkpoint, name: str | None) -> object:
        """Call ``vl_chat_template``.

        Raises:
            OptionError: ``name`` is given, but the plugin has no named templates.
        """
        hook = self._manager.hook.vl_chat_template
        if name is not None and "name" not in _argument_names(hook):
            raise OptionError(
                f"plugin {self.info.distribution} {self.info.version} has one chat template "
                f"and no name for it: leave {name!r} out (chat_template, --chat-template)"
            )
        return hook(checkpoint=checkpoint, name=name)

    def language_model(self, checkpoint: Checkpoint) -> object:
        """Call ``vl_language_model``."""
        return self._manager.hook.vl_language_model(checkpoint=checkpoint)


def _import(value: str) -> object:
    """Import the object of an entry point: ``"module"``, or ``"module:attribute"``."""
    module_name, _, attributes = value.partition(":")
    imported: object = importlib.import_module(module_name.strip())
    for attribute in filter(None, attributes.strip().split(".")):
        imported = getattr(imported, attribute)
    return imported


def _argument_names(hook: pluggy.HookCaller) -> set[str]:
    """Return the names of the arguments of a plugin's hook."""
    return {name for implementation in hook.get_hookimpls() for name in implementation.argnames}


def load_plugin(info: PluginInfo) -> PluginInfo:
    """Import every module of a usable plugin, and return its state and the duration.

    The duration includes libraries that have not been imported before.
    """
    if info.state not in (PluginState.READY, PluginState.CONFLICT):
        return info
    started = time.perf_counter()
    for module_name in sorted(set(info.modules.values())):
        try:
            Plugin(info, module_name)
        except PluginError as error:
            record_failure(info, str(error))
            return replace(info, state=PluginState.BROKEN, reason=str(error))
    return replace(info, import_ms=(time.perf_counter() - started) * 1000)


def find_plugin(
    config: Mapping[str, Any],
    *,
    files: CheckpointFiles | None = None,
    plugin: str | None = None,
) -> Plugin:
    """Find the installed plugin that serves a checkpoint.

    A generic plugin is considered, and imported, only if no other plugin serves the checkpoint.

    Args:
        config: the checkpoint's ``config.json``.
        files: its metadata files; ``None`` if there is only a configuration.
        plugin: the distribution to use if several plugins serve the checkpoint.

    Raises:
        NoPluginError: no plugin serves it; the message has the reason of each candidate.
        PluginConflictError: several plugins serve it, and ``plugin`` does not select one.
        PluginImportError: the only candidate cannot be imported.
        PluginContractError: the only candidate violates the plugin contract.
        IncompatiblePluginError: the only candidate requires another version of vlcore.
    """
    architectures = _architectures(config)
    installed = installed_plugins()
    candidates = [info for info in installed if set(info.modules) & set(architectures)]
    if plugin is not None:
        candidates = _selected(plugin, candidates, installed, architectures)

    matches: list[Plugin] = []
    rejections: list[_Rejection] = []
    for group in _by_precedence(candidates, architectures):
        outcomes = [_consider(info, architectures, config, files) for info in group]
        matches = [outcome for outcome in outcomes if isinstance(outcome, Plugin)]
        rejections += [outcome for outcome in outcomes if isinstance(outcome, _Rejection)]
        if matches:
            break
    reasons = [rejection.reason for rejection in rejections]
    failures = [rejection.error for rejection in rejections if rejection.error is not None]
    if len(matches) == 1:
        for failure in failures:
            logger.warning("a plugin for the same architecture was ignored: %s", failure)
        return matches[0]
    if matches:
        names = " and ".join(f"{match.info.distribution} {match.info.version}" for match in matches)
        first = matches[0].info.distribution
        raise PluginConflictError(
            f"{names} both serve this {'/'.join(architectures)} checkpoint. Choose one with "
            f"plugin={first!r} (command line: --plugin {first}), or hide the other with "
            f"{BLOCK_VARIABLE}"
        )
    if failures and len(failures) == len(reasons) == 1:
        raise failures[0]
    message = _no_plugin_message(config, architectures, reasons, installed)
    raise NoPluginError(message) from (failures[0] if failures else None)


def _by_precedence(
    candidates: Sequence[PluginInfo], architectures: Sequence[str]
) -> tuple[list[PluginInfo], list[PluginInfo]]:
    """Separate the plugins of the architectures from those that are generic for all of them."""
    own: list[PluginInfo] = []
    generic: list[PluginInfo] = []
    for info in candidates:
        names = set(info.modules) & set(architectures)
        (generic if names <= info.generic_architectures else own).append(info)
    return own, generic


@dataclass(frozen=True)
class _Rejection:
    """Why a candidate does not serve a checkpoint; ``error`` if the candidate is at fault."""

    reason: str
    error: PluginError | None = None


def _consider(
    info: PluginInfo,
    architectures: Sequence[str],
    config: Mapping[str, Any],
    files: CheckpointFiles | None,
) -> Plugin | _Rejection:
    """Import a candidate, unless its state forbids it, and ask whether it serves a checkpoint."""
    name = f"{info.distribution} {info.version}"
    if info.state in (PluginState.BLOCKED, PluginState.INCOMPATIBLE):
        message = f"{name} is {info.state}: {info.reason}"
        is_fault = info.state is PluginState.INCOMPATIBLE
        return _Rejection(message, IncompatiblePluginError(message) if is_fault else None)
    module_name = next(info.modules[key] for key in architectures if key in info.modules)
    try:
        candidate = Plugin(info, module_name)
    except PluginError as error:
        record_failure(info, str(error))
        return _Rejection(str(error), error)
    reason = candidate.mismatch(config, files)
    return candidate if reason is None else _Rejection(f"{name} does not serve it: {reason}")


def _architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("architectures")
    if (
        not isinstance(names, Sequence)
        or isinstance(names, str)
        or not names
        or not all(isinstance(name, str) for name in names)
    ):
        raise NoPluginError(
            'config.json must name the model class in "architectures", a list of strings such as '
            f'["SomeModelForConditionalGeneration"]; it has {names!r}'
        )
    return tuple(names)


def _selected(
    plugin: str,
    candidates: Sequence[PluginInfo],
    installed: Sequence[PluginInfo],
    architectures: Sequence[str],
) -> list[PluginInfo]:
    name = canonicalize_name(plugin)
    selected = [info for info in candidates if canonicalize_name(info.distribution) == name]
    if selected:
        return selected
    for info in installed:
        if canonicalize_name(info.distribution) == name:
            raise NoPluginError(
                f"plugin {info.distribution} {info.version} serves "
                f"{describe_architectures(info)}, not {'/'.join(architectures)}"
            )
    raise NoPluginError(
        f"plugin {plugin!r} is not installed: pip install {plugin}. Installed: "
        f"{_list_plugins(installed)}"
    )


def _no_plugin_message(
    config: Mapping[str, Any],
    architectures: Sequence[str],
    reasons: Sequence[str],
    installed: Sequence[PluginInfo],
) -> str:
    lines = [f"no installed plugin serves this {'/'.join(architectures)} checkpoint"]
    lines += [f"- {reason}" for reason in reasons]
    known = [
        entry for entry in _known_plugins() if set(entry["architectures"]) & set(architectures)
    ]
    matching = [entry for entry in known if _has_signs(config, entry)]
    present = {canonicalize_name(info.distribution) for info in installed}
    if absent := [entry for entry in matching or known if entry["package"] not in present]:
        what = "checkpoint, by its config.json" if matching else "architecture name"
        lines.append(f"packages known to serve this {what}:")
        lines += [f"- pip install {entry['package']}  ({entry['serves']})" for entry in absent]
    elif not reasons:
        lines.append("vlcore knows no package that does; look for one named vl-plugin-…")
    lines.append(f"installed plugins: {_list_plugins(installed)}")
    return "\n".join(lines)


def _has_signs(config: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether a configuration has every sign of a known package; ``False`` if it has no signs."""
    signs: Mapping[str, str] = entry.get("signs", {})
    return bool(signs) and all(
        re.search(pattern, str(config.get(key, ""))) for key, pattern in signs.items()
    )


def _list_plugins(installed: Iterable[PluginInfo]) -> str:
    return ", ".join(f"{info.distribution} {info.version}" for info in installed) or "none"


def _known_plugins() -> list[dict[str, Any]]:
    """Read the list of published packages.

    Several packages can serve one architecture name. The ``signs`` of a package distinguish its
    checkpoints: patterns for values of config.json, where an absent key counts as empty.
    """
    text = resources.files("vlcore.plugins").joinpath("known_plugins.json").read_text("utf-8")
    known: list[dict[str, Any]] = json.loads(text)
    return known

"""Checks of the installed package; no checkpoint is needed."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from vlcore import hookspecs
from vlcore._version import __version__
from vlcore.errors import PluginError
from vlcore.plugins.registry import Plugin
from vlcore.testing.check import check
from vlcore.testing.report import fail
from vlcore.testing.subject import Subject

_HEAVY = ("torch", "transformers", "accelerate", "torchvision", "tensorflow", "jax")
_FAR_VERSION = "99999"
_HOOK_NAMES = ("vl_match", "vl_vision_model", "vl_chat_template", "vl_language_model")


@check(
    "entry-point",
    "registers each architecture once, with a module that exists",
    needs_model=False,
)
def entry_point(subject: Subject) -> None:
    """Read the entry points themselves: discovery keeps only one of two with the same name."""
    group = hookspecs.ENTRY_POINT_GROUP
    entry_points = subject.distribution.entry_points
    found = [
        *entry_points.select(group=group),
        *entry_points.select(group=hookspecs.GENERIC_GROUP),
    ]
    where = f"entry points of {subject.name} {subject.version}"
    advice = f'in pyproject.toml, [project.entry-points."{group}"] needs ARCHITECTURE = "module"'
    if not found:
        fail(
            expected=f"at least one entry point in the group {group} or {hookspecs.GENERIC_GROUP}",
            actual="none",
            where=where,
            advice=f"{advice}; install the package again afterwards",
        )
    names = [point.name for point in found]
    for point in found:
        if not point.name.isidentifier() or names.count(point.name) > 1:
            fail(
                expected="each name once, and a string of architectures in config.json",
                actual=f"{point.name!r} {names.count(point.name)} time(s)",
                where=where,
                advice=advice,
            )
        if not _module_exists(point.value):
            fail(
                expected=f"a module for {point.name}",
                actual=f"{point.value!r}, which Python cannot find",
                where=where,
                advice=f"{advice}: the module's name, without a colon; is it in the wheel?",
            )


def _module_exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False


@check(
    "requires-vlcore",
    "states in Requires-Dist which versions of vlcore it supports, including the installed one",
    needs_model=False,
)
def requires_vlcore(subject: Subject) -> None:
    """Check both bounds: a later vlcore may change the contract."""
    where = f"Requires-Dist of {subject.name} {subject.version}"
    advice = 'add "vlcore>=0.1,<0.2" or similar to dependencies of pyproject.toml'
    stated = []
    for text in subject.distribution.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            fail(
                expected="requirements that can be read",
                actual=f"{text!r}: {error}",
                where=where,
                advice="fix it",
            )
        if canonicalize_name(requirement.name) == "vlcore" and (
            requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ):
            stated.append(requirement)
    if not stated:
        fail(expected="a requirement of vlcore", actual="none", where=where, advice=advice)
    for requirement in stated:
        versions = requirement.specifier
        if not versions.contains(__version__, prereleases=True):
            fail(
                expected=f"a range that contains the installed vlcore {__version__}",
                actual=str(requirement),
                where=where,
                advice="widen the range once the kit passes, or install a vlcore within it",
            )
    if all(requirement.specifier.contains(_FAR_VERSION) for requirement in stated):
        fail(
            expected="a range with an upper bound, such as <0.2",
            actual=", ".join(map(str, stated)),
            where=where,
            advice=f"{advice}: a later vlcore may have another contract",
        )


@check(
    "hooks",
    "implements the four hooks, with the names and arguments of the contract",
    needs_model=False,
)
def hooks(subject: Subject) -> None:
    """Register every module as discovery does, and check what discovery accepts."""
    for name in subject.module_names:
        try:
            Plugin(subject.info, name)
        except PluginError as error:
            fail(
                expected=f"the hooks {', '.join(_HOOK_NAMES)}, each marked with vlcore.hookimpl",
                actual=str(error),
                where=f"module {name}",
                advice="compare it with vlcore.hookspecs; a hook may leave out arguments",
            )
        for hook in _HOOK_NAMES:
            _check_hook(name, hook, getattr(importlib.import_module(name), hook, None))


def _check_hook(module: str, name: str, function: Any) -> None:
    if not inspect.isfunction(function):  # pluggy accepted it, so it is callable
        return
    where = f"{name} in module {module}"
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        fail(
            expected="a plain function",
            actual="an async function or a generator",
            where=where,
            advice="write it with def and return",
        )
    defaults = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is not inspect.Parameter.empty
        or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if defaults:
        fail(
            expected="arguments without defaults",
            actual=f"{', '.join(defaults)} with a default or a star, which pluggy 1.5 never passes",
            where=where,
            advice=f"write {defaults[0]} without a default, or remove it",
        )


@check(
    "light-import",
    "imports neither torch nor transformers before a hook is called",
    needs_model=False,
)
def light_import(subject: Subject) -> None:
    """Import the modules in a separate process."""
    for imported in subject.load("imports"):
        if heavy := [name for name in _HEAVY if name in imported.names]:
            fail(
                expected="a module that is imported in milliseconds",
                actual=f"it imports {', '.join(heavy)}",
                where=f"module {imported.module}",
                advice="import these inside the hooks; for annotations, under if TYPE_CHECKING",
            )


@check("quiet-import", "prints nothing when it is imported", needs_model=False)
def quiet_import(subject: Subject) -> None:
    """Import the modules in a separate process: their output would corrupt ``--json``."""
    for imported in subject.imports:
        if imported.printed:
            fail(
                expected="no output",
                actual=repr(imported.printed[:200]),
                where=f"module {imported.module}",
                advice="log with the logging module, inside the hooks",
            )

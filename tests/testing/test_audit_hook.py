"""What is noted of a plugin at work, and what is let pass."""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlcore.testing.audit_hook import AuditHook, SideEffect, _is_import_of_library


@pytest.fixture
def observer(tmp_path: Path) -> AuditHook:
    return AuditHook(tmp_path, "test_audit_hook")


def reported(observer: AuditHook, event: str, *arguments: Any) -> list[SideEffect]:
    with observer:
        observer(event, arguments)
    return observer.side_effects


@pytest.mark.parametrize(
    ("event", "arguments", "what"),
    [
        ("socket.connect", (None, ("example.org", 443)), "('example.org', 443)"),
        ("socket.getaddrinfo", ("example.org", 443, 0, 0, 0), "'example.org'"),
        ("socket.sendto", (None, ("1.1.1.1", 53)), "('1.1.1.1', 53)"),
        ("urllib.Request", ("http://example.org", None, {}, "GET"), "'http://example.org'"),
    ],
)
def test_the_network_is_refused(
    observer: AuditHook, event: str, arguments: tuple[Any, ...], what: str
) -> None:
    with observer, pytest.raises(ConnectionRefusedError):
        observer(event, arguments)
    (side_effect,) = observer.side_effects
    assert side_effect.kind == "network"
    assert what in side_effect.what
    assert "test_audit_hook.py" in side_effect.where


def test_a_unix_socket_is_no_network(observer: AuditHook) -> None:
    assert reported(observer, "socket.connect", None, "/run/some.sock") == []


@pytest.mark.parametrize("name", ["modeling.py", "sub/modeling.py"])
def test_code_of_the_checkpoint_is_refused(observer: AuditHook, tmp_path: Path, name: str) -> None:
    code = compile("1", str(tmp_path / name), "exec")
    for event, arguments in (("exec", (code,)), ("open", (str(tmp_path / name), "r", 0))):
        with observer, pytest.raises(PermissionError):
            observer(event, arguments)
    assert [side_effect.kind for side_effect in observer.side_effects] == ["code", "code"]


def test_code_that_transformers_copied_is_refused(observer: AuditHook) -> None:
    code = compile("1", "/cache/modules/transformers_modules/x/modeling.py", "exec")
    with observer, pytest.raises(PermissionError):
        observer("exec", (code,))
    assert [side_effect.kind for side_effect in observer.side_effects] == ["code"]


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("exec", (compile("1", "/usr/lib/module.py", "exec"),)),
        ("exec", (types.SimpleNamespace(),)),
        ("open", ("/some/config.json", "r", os.O_RDONLY)),
        ("open", (3, "w", os.O_WRONLY)),
        ("open", ("/dev/null", "w", os.O_WRONLY)),
        ("open", ("/x/__pycache__/y.pyc", None, os.O_WRONLY)),
        ("import", ("x", None, None, None, None)),
    ],
)
def test_ordinary_work_is_let_pass(
    observer: AuditHook, event: str, arguments: tuple[Any, ...]
) -> None:
    assert reported(observer, event, *arguments) == []


@pytest.mark.parametrize(
    ("event", "arguments", "what"),
    [
        ("open", ("/x/cache.json", "w", 0), "wrote /x/cache.json"),
        ("open", ("/x/cache.json", "a", 0), "wrote /x/cache.json"),
        ("open", (b"/x/cache.json", None, os.O_CREAT | os.O_RDWR), "wrote /x/cache.json"),
        ("os.mkdir", ("/x/cache", 511, -1), "mkdir /x/cache"),
        ("os.remove", ("/x/cache", -1), "remove /x/cache"),
        ("os.rename", ("/x/a", "/x/b", -1, -1), "rename /x/a"),
    ],
)
def test_a_file_that_is_touched_is_noted(
    observer: AuditHook, event: str, arguments: tuple[Any, ...], what: str
) -> None:
    (side_effect,) = reported(observer, event, *arguments)
    assert (side_effect.kind, side_effect.what) == ("files", what)


def test_unpickling_a_class_is_noted(observer: AuditHook) -> None:
    (side_effect,) = reported(observer, "pickle.find_class", "os", "system")
    assert (side_effect.kind, side_effect.what) == ("code", "unpickled os.system")


def test_the_same_side_effect_is_noted_once(observer: AuditHook) -> None:
    for _ in range(2):
        reported(observer, "os.mkdir", "/x/cache")
    assert len(observer.side_effects) == 1


def test_nothing_is_noted_unless_entered(observer: AuditHook) -> None:
    observer("os.mkdir", ("/x",))
    with observer:
        pass
    observer("os.mkdir", ("/x",))
    assert observer.side_effects == []


def _through_an_import(function: Callable[[], Any]) -> Any:
    """Call a function as if a module that is being imported did."""
    code = compile("result = function()", "<frozen importlib._bootstrap>", "exec")
    names: dict[str, Any] = {"function": function}
    exec(code, names)
    return names["result"]


def test_what_a_library_does_while_it_is_imported_is_passed_over() -> None:
    inside = compile("check(own)", "/lib/library.py", "eval")

    def library() -> Any:
        # The code above, which only so appears to come from a library's file.
        return eval(inside, {"check": _is_import_of_library, "own": "vl_plugin_some"})  # noqa: S307

    assert _through_an_import(library) is True
    assert library() is False


def test_what_the_plugin_does_while_it_is_imported_is_not_passed_over() -> None:
    assert _through_an_import(lambda: _is_import_of_library("test_audit_hook")) is False

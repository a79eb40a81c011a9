from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pluggy

import vlcore
from vlcore import hookspecs

SIGNATURES = {
    "vl_match": ["config", "files"],
    "vl_vision_model": ["checkpoint", "device", "dtype", "device_map", "max_memory"],
    "vl_chat_template": ["checkpoint", "name"],
    "vl_language_model": ["checkpoint"],
}


def specs() -> dict[str, Any]:
    return {name: value for name, value in vars(hookspecs).items() if name.startswith("vl_")}


def test_the_contract_is_four_hooks() -> None:
    assert {name: list(inspect.signature(spec).parameters) for name, spec in specs().items()} == (
        SIGNATURES
    )


def test_the_first_result_is_used() -> None:
    assert all(spec.vlcore_spec["firstresult"] for spec in specs().values())


def test_every_hook_and_argument_is_documented() -> None:
    for name, spec in specs().items():
        docstring = inspect.getdoc(spec)
        assert docstring, name
        assert all(f"{argument}: " in docstring for argument in SIGNATURES[name]), name


def test_hookimpl_marks_for_vlcore() -> None:
    assert vlcore.hookimpl is hookspecs.hookimpl
    assert vlcore.hookimpl.project_name == hookspecs.PROJECT_NAME == "vlcore"
    assert hookspecs.ENTRY_POINT_GROUP == "vlcore.architectures"
    assert hookspecs.GENERIC_GROUP == "vlcore.generic"


def test_a_hook_may_leave_out_arguments() -> None:
    @vlcore.hookimpl
    def vl_chat_template(checkpoint: object) -> object:
        return [checkpoint]

    manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    manager.register(SimpleNamespace(vl_chat_template=vl_chat_template))
    manager.check_pending()
    assert manager.hook.vl_chat_template(checkpoint=1, name="chosen") == [1]

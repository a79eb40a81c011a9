"""What the engine takes for granted in the installed lmdeploy, beyond what its tests drive."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import re
from importlib import metadata

import pytest

from vlcore.engines.external.continuation import Continuation
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.turbomind import support as turbomind_support
from vlcore.engines.turbomind.requests import _STATUS_REASONS
from vlcore.engines.turbomind.translation import to_turbomind

if importlib.util.find_spec("lmdeploy") is None:
    pytest.skip("lmdeploy is not installed: make test-turbomind", allow_module_level=True)

import turbomind_stand_in as stand_in
from lmdeploy import messages
from lmdeploy.turbomind import _tm
from lmdeploy.turbomind import turbomind as lmdeploy_turbomind
from lmdeploy.turbomind.supported_models import SUPPORTED_ARCHS


def test_the_installed_release_is_a_supported_one() -> None:
    version = metadata.version("lmdeploy")
    assert turbomind_support.lmdeploy_version() == version
    assert turbomind_support.supported_versions().contains(version)


def test_turbomind_supports_the_listed_architectures() -> None:
    assert turbomind_support._supported()["embeddings"].keys() <= SUPPORTED_ARCHS.keys()


def test_turbomind_reads_the_listed_token_embeddings() -> None:
    for architecture, name in turbomind_support._supported()["embeddings"].items():
        registered = SUPPORTED_ARCHS[architecture]
        from lmdeploy.turbomind.models.base import INPUT_MODELS

        source = inspect.getsource(INPUT_MODELS.get(registered).model)
        assert f"'{name}'" in source or name.removesuffix(".weight") in source


def test_every_option_is_one_of_lmdeploys() -> None:
    known = {field.name for field in dataclasses.fields(messages.GenerationConfig)}
    continuation = Continuation(config=GenerationConfig(), end_token_ids=[2], max_new_tokens=1)
    assert to_turbomind(continuation, eos_token_ids=[2]).keys() <= known


def test_lmdeploys_limits_are_those_that_requests_are_checked_against() -> None:
    messages.GenerationConfig(temperature=2.0, top_k=0)
    with pytest.raises(AssertionError):
        messages.GenerationConfig(temperature=2.01)


def test_lmdeploy_reports_what_the_engine_explains() -> None:
    reported = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(lmdeploy_turbomind)))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ResponseType"
    }
    assert reported >= _STATUS_REASONS.keys() | {"SUCCESS", "FINISH"}
    assert {kind.name for kind in messages.ResponseType} >= _STATUS_REASONS.keys()


def test_the_fake_is_called_like_turbomind() -> None:
    signature = _tm.ModelRequest.forward.__doc__.partition(" -> ")[0]
    parameters = re.findall(r"[(,] (\w+): ", signature.replace("(self", "( self"))
    assert parameters == list(inspect.signature(stand_in.Request.forward).parameters)


def test_the_fake_has_the_interface_of_turbomind() -> None:
    for real, stand_in_class in (
        (_tm.TurboMind, stand_in.Communicator),
        (_tm.ModelRequest, stand_in.Request),
        (_tm.AtomicRequestState, stand_in._State),
    ):
        own = {
            name
            for name, value in vars(stand_in_class).items()
            if callable(value) and not name.startswith("_") and name != "step"
        }
        assert own <= set(dir(real))

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from vlcore.cluster.arguments import ClusterArguments
from vlcore.errors import OptionError


def test_values_of_yaml_become_settings(tmp_path: Path) -> None:
    arguments = ClusterArguments.from_mapping(
        {
            "model": str(tmp_path / "tiny-model"),
            "encoder": {"max_batch_size": 4},
            "image_access": {"urls": False},
            "image_limits": {"formats": ["PNG"], "max_images": 2},
            "server": {"max_requests": 7, "api_keys": ["a"]},
        }
    )
    assert arguments.settings.model_name == "tiny-model"
    assert arguments.settings.max_requests == 7
    assert arguments.settings.api_keys == ("a",)
    assert arguments.limits.formats == ("PNG",)
    assert not arguments.access.urls
    assert not arguments.access.trusts_caller
    assert pickle.loads(pickle.dumps(arguments)) == arguments  # noqa: S301  (made here)


def test_a_hub_repo_is_served_under_its_id() -> None:
    assert ClusterArguments(model="owner/name").settings.model_name == "owner/name"


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ({}, "must state a model"),
        ({"modell": "x", "model": "x"}, "args has no setting modell"),
        ({"server": {"ports": 1}}, "server has no setting ports"),
        ({"server": {"max_requests": 0}}, "max_requests must be a positive number"),
        ({"server": {"port": "x"}}, "a value of server has a wrong type"),
        ({"server": 5}, "server must be a mapping"),
        ({"encoder": {"image_access": {}}}, "encoder has no setting image_access"),
        ({"image_limits": {"formats": ["EXE"]}}, "formats must be some of"),
        ({"engine": "fast"}, "engine must be one of"),
        ({"engine_config": {"max_num_seqs": 2}}, "needs a named engine"),
    ],
)
def test_a_mistake_is_named(values: dict[str, Any], fragment: str) -> None:
    values = {"model": "x"} | values if values else values
    with pytest.raises(OptionError, match=fragment):
        ClusterArguments.from_mapping(values)

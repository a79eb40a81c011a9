from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.engines.sampling_defaults import read_sampling_defaults
from vlcore.errors import ConfigError


def checkpoint(directory: Path, generation_config: Any = None) -> Checkpoint:
    (directory / "config.json").write_text(json.dumps({"architectures": ["Any"]}), "utf-8")
    if generation_config is not None:
        text = (
            generation_config
            if isinstance(generation_config, str)
            else json.dumps(generation_config)
        )
        (directory / "generation_config.json").write_text(text, "utf-8")
    return Checkpoint.open(directory)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (None, {}),
        ({}, {}),
        ({"eos_token_id": 2, "max_length": 4096, "do_sample": True}, {}),
        # As in vicuna-7b-v1.5, which does not state do_sample.
        ({"temperature": 0.9, "top_p": 0.6}, {"temperature": 0.9, "top_p": 0.6}),
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 20, "min_p": 0.1},
            {"temperature": 0.7, "top_k": 20, "min_p": 0.1},
        ),
        ({"repetition_penalty": 1.05, "top_k": 8.0}, {"repetition_penalty": 1.05, "top_k": 8}),
        ({"top_k": -1, "top_p": 0, "temperature": None}, {"top_k": 0, "top_p": 0}),
        ({"do_sample": False}, {"temperature": 0.0}),
        (
            {"do_sample": False, "temperature": 0.7, "top_p": 0.8},
            {"temperature": 0.0, "top_p": 0.8},
        ),
    ],
)
def test_the_stated_sampling_options_are_read(
    tmp_path: Path, stated: Any, expected: dict[str, Any]
) -> None:
    assert read_sampling_defaults(checkpoint(tmp_path, stated)) == expected


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"temperature": -1}, "temperature must be .*it is -1"),
        ({"temperature": "0.7"}, "temperature must be .*it is '0.7'"),
        ({"do_sample": False, "temperature": True}, "temperature must be .*it is True"),
        ({"top_k": 2.5}, "top_k must be .*it is 2.5"),
        ({"top_k": [50]}, "top_k must be "),
        ({"top_p": 1.5}, "top_p must be "),
        ('{"top_p": NaN}', "top_p must be "),
        ({"min_p": {}}, "min_p must be "),
        ({"repetition_penalty": 0}, "repetition_penalty must be "),
        ({"do_sample": "yes"}, "do_sample must be "),
        ("[1]", "generation_config.json"),
        ("{", "generation_config.json"),
    ],
)
def test_an_invalid_value_is_an_error_that_names_the_file(
    tmp_path: Path, stated: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_sampling_defaults(checkpoint(tmp_path, stated))
    assert "generation_config.json" in str(caught.value)

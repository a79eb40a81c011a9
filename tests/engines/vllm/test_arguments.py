from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlcore.engines.vllm.arguments import complete
from vlcore.errors import OptionError

VIEW = Path("the view")
DEFAULTS = {"dtype": "float16", "max_model_len": 512, "load_format": "vlcore", "seed": 7}
FIXED = {
    "model": "the view",
    "enable_prompt_embeds": True,
    "skip_tokenizer_init": False,
    "generation_config": "vllm",
    "max_logprobs": -1,
    "logprobs_mode": "raw_logprobs",
}


def arguments(**fields: Any) -> SimpleNamespace:
    """In place of ``AsyncEngineArgs``, with vLLM's own defaults."""
    own: dict[str, Any] = {
        "model": "other",
        "dtype": "auto",
        "max_model_len": None,
        "load_format": "auto",
    }
    own |= {"logprobs_mode": "raw_logprobs", "enable_prompt_embeds": False, "max_num_seqs": None}
    return SimpleNamespace(**own | fields)


def test_a_mapping_is_completed_with_defaults() -> None:
    given = {"max_num_seqs": 4, "dtype": "bfloat16", "max_model_len": None}
    assert complete(given, VIEW, DEFAULTS) == {
        "dtype": "bfloat16",
        "max_model_len": 512,
        "load_format": "vlcore",
        "seed": 7,
        "max_num_seqs": 4,
        **FIXED,
    }
    assert given == {"max_num_seqs": 4, "dtype": "bfloat16", "max_model_len": None}


def test_vllms_arguments_are_copied_and_keep_what_they_state() -> None:
    given = arguments(max_num_seqs=4, load_format="safetensors", quantization="fp8")
    completed = complete(given, VIEW, DEFAULTS)
    assert (completed.max_num_seqs, completed.quantization) == (4, "fp8")
    assert (completed.load_format, completed.dtype) == ("safetensors", "float16")
    assert completed.max_model_len == 512
    assert {name: getattr(completed, name) for name in FIXED} == FIXED
    assert (given.model, given.dtype, given.enable_prompt_embeds) == ("other", "auto", False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": "other"}, "must not set model='other'.* with model='the view'"),
        ({"enable_prompt_embeds": False}, "with enable_prompt_embeds=True"),
        ({"max_logprobs": 5}, "must not set max_logprobs=5"),
        (arguments(logprobs_mode="processed_logits"), "logprobs_mode='processed_logits'"),
    ],
)
def test_arguments_that_vlcore_sets_are_refused(config: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        complete(config, VIEW, DEFAULTS)

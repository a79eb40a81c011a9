from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import NUM_ROWS
from held_engine import held
from PIL import Image
from pipeline_requests import RED, SHORT, image_part, user, vlcore_threads
from waits import wait_for

from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.errors import (
    CheckpointNotFoundError,
    ContextLengthError,
    EngineUnavailableError,
    ImageLimitError,
    NoPluginError,
    OptionError,
    PluginContractError,
    PromptError,
)
from vlcore.inference.factory import pipeline
from vlcore.inference.pipeline import Pipeline
from vlcore.media.policy import ImageLimits
from vlcore.prompts.chat_template import RoleTemplate
from vlcore.prompts.messages import Control, Text
from vlcore.vision.stats import EncoderStats

# -- one prompt


def test_the_limits_of_a_prompt_are_settings(checkpoint: Path) -> None:
    with pipeline(checkpoint, device="cpu", max_prompt_tokens=300, max_prompt_chars=40) as pipe:
        many = [*[image_part(RED)] * 80, "What?"]
        with pytest.raises(ContextLengthError, match="allows 300"):
            pipe([user(*many)], SHORT)
        assert pipe.encoder_stats().num_forwards == 0
        with pytest.raises(PromptError, match="have 41 characters, and max_prompt_chars allows 40"):
            pipe("x" * 41, SHORT)
        good, bad = pipe(["Hi", "x" * 41], SHORT)
        assert good.generate_token_len > 0
        assert isinstance(bad.error, PromptError)


def test_a_limit_above_the_context_leaves_the_context(checkpoint: Path) -> None:
    with (
        pipeline(checkpoint, device="cpu", max_prompt_tokens=10**6) as pipe,
        pytest.raises(ContextLengthError, match="context length is 512"),
    ):
        pipe("x" * 3000, SHORT)


def test_an_invalid_limit_is_rejected_before_the_model_is_loaded() -> None:
    with pytest.raises(OptionError, match="max_prompt_chars must be a positive integer"):
        pipeline("no-such-model", max_prompt_chars=0)


def test_a_prompt_that_is_too_long_is_rejected_before_its_images_are_encoded(
    fresh: Pipeline,
) -> None:
    with pytest.raises(ContextLengthError, match="shorten the text"):
        fresh(("x" * 3000, RED), SHORT)
    with pytest.raises(ContextLengthError, match="fewer images"):
        fresh(("hello", [RED] * 200), SHORT)
    assert fresh.encoder_stats().num_forwards == 0
    fresh(("hello", RED), SHORT)
    fresh(("hello again", RED), SHORT)
    assert fresh.encoder_stats() == EncoderStats(
        num_images=203, num_cache_hits=1, num_forwards=1, num_encoded=1, num_tiles=1
    )


# -- options


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        (
            {"engine": "magic"},
            OptionError,
            "one of auto, turbomind, vllm, transformers; it is 'magic'",
        ),
        ({"engine_config": 3}, OptionError, "engine_config must be a Transf.* with engine='auto'"),
        ({"engine": "turbomind"}, EngineUnavailableError, "TurboMind cannot run .* here: "),
        ({"device": "tpu9000"}, OptionError, "device must be auto, cpu.*'tpu9000'"),
        ({"dtype": "int8"}, OptionError, "dtype must be a floating.*'int8'"),
        ({"dtype": "float99"}, OptionError, "dtype must be a floating.*'float99'"),
        ({"dtype": torch.int32}, OptionError, "dtype must be a floating"),
        ({"plugin": "absent-plugin"}, NoPluginError, "absent-plugin"),
        ({"chat_template": "absent"}, OptionError, "absent.*vicuna_v1"),
        ({"max_batch_size": 0}, OptionError, "max_batch_size must be an integer of at least 1"),
        ({"cache_bytes": -1}, OptionError, "cache_bytes must be an integer of at least 0"),
        ({"batch_size": 8}, OptionError, "unknown option.s. batch_size; .* max_batch_size, "),
        ({"vision_devices": []}, OptionError, r"vision_devices must be a list .* it is \[\]"),
        ({"vision_devices": "cpu"}, OptionError, "vision_devices must be a list .* it is 'cpu'"),
        ({"vision_devices": ["tpu"]}, OptionError, "device must be auto, cpu.*'tpu'"),
        ({"vision_device_map": "far"}, OptionError, "device_map must be one of auto, balanced"),
    ],
)
def test_an_invalid_option_is_an_error_and_leaves_no_thread(
    checkpoint: Path, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    before = vlcore_threads()
    with pytest.raises(error, match=reason):
        pipeline(checkpoint, **{"device": "cpu"} | options)
    assert vlcore_threads() <= before


def test_cuda_where_there_is_none_is_an_error(checkpoint: Path) -> None:
    with pytest.raises(EngineUnavailableError, match="sees no CUDA device: use device='cpu'"):
        pipeline(checkpoint, device="cuda")


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        pipeline(tmp_path / "absent")


def test_limits_and_settings_are_applied(checkpoint: Path) -> None:
    with pipeline(
        checkpoint,
        device="cpu",
        image_limits=ImageLimits(max_pixels=100),
        engine_config=TransformersEngineConfig(session_len=40),
        chat_template=RoleTemplate("U:", "", "A:"),
    ) as pipe:
        with pytest.raises(ImageLimitError, match="max_pixels=100"):
            pipe(("hello", RED), SHORT)
        assert pipe("hello").input_token_len < 15
        assert pipe("hello", {"ignore_eos": True}).finish_reason == "length"
        with pytest.raises(ContextLengthError, match="context length is 40"):
            pipe("hello " * 40)


def test_replicas_of_the_vision_model_give_the_same_responses(checkpoint: Path) -> None:
    images = [Image.new("RGB", (30, 20), (20 * number, 0, 0)) for number in range(12)]
    prompts = [("hello", image) for image in images]
    with pipeline(checkpoint, device="cpu", dtype="float32") as pipe:
        expected = [response.token_ids for response in pipe(prompts, SHORT)]
    with pipeline(
        checkpoint, device="cpu", dtype="float32", vision_devices=["cpu", "cpu"], max_batch_size=2
    ) as pipe:
        assert [response.token_ids for response in pipe(prompts, SHORT)] == expected
        assert pipe.encoder_stats().num_encoded == len(images)


def test_a_split_vision_model_gives_the_same_responses(checkpoint: Path) -> None:
    with pipeline(checkpoint, device="cpu", dtype="float32") as pipe:
        expected = pipe(("hello", RED), SHORT).token_ids
    with pipeline(
        checkpoint, device="cpu", dtype="float32", vision_max_memory={"cpu": "1GiB"}
    ) as pipe:
        assert pipe(("hello", RED), SHORT).token_ids == expected


def test_preprocessed_images_are_freed_before_the_response_is_generated(checkpoint: Path) -> None:
    with pipeline(checkpoint, device="cpu") as pipe:
        inputs: list[weakref.ref[Any]] = []
        encoder: Any = pipe._runner.encoder
        model = encoder.vision_model
        preprocess = model.preprocess

        def recorded(image: Image.Image, **options: Any) -> Any:
            inputs.append(weakref.ref(result := preprocess(image, **options)))
            return result

        model.preprocess = recorded
        with held(pipe.engine, 2):
            chunks = pipe.stream_infer(("hello", RED), SHORT)
            next(chunks)
            wait_for(lambda: gc.collect() >= 0 and [reference() for reference in inputs] == [None])
            chunks.close()


def test_a_named_template_is_used(checkpoint: Path) -> None:
    with pipeline(checkpoint, device="cpu", chat_template="chatml_direct") as pipe:
        assert pipe.template.render([{"role": "user", "content": "hello"}]).startswith(
            "<|im_start|>"
        )


def test_half_precision_generates(checkpoint: Path) -> None:
    with pipeline(checkpoint, device="cpu", dtype="bfloat16") as pipe:
        assert pipe(("hello", RED), SHORT).generate_token_len == 6


def test_an_expansion_of_the_wrong_length_is_a_contract_error(checkpoint: Path) -> None:
    class Wrong(RoleTemplate):
        def expand(self, layout: Any, num_rows: int) -> tuple[Text | Control, ...]:
            return ()

    with (
        pipeline(checkpoint, device="cpu", chat_template=Wrong("U:", "", "A:")) as pipe,
        pytest.raises(PluginContractError, match=f"image 0, which has {NUM_ROWS}"),
    ):
        pipe(("hello", RED), SHORT)

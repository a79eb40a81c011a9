"""Pixels, prompts, rows and answers are those of transformers' own processor and model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string
from vl_plugin_idefics3.template import Idefics3Template

import vlcore
from vlcore import Rows

SIZES = [(100, 60), (60, 100), (28, 28), (9, 7), (300, 4), (1, 1), (84, 84), (5000, 3)]
PROCESSORS = {"idefics3": Idefics3ImageProcessorPil, "smolvlm": SmolVLMImageProcessorPil}


def random_image(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(size).integers(0, 256, (*size[::-1], 4), np.uint8)
    return Image.fromarray(noise, "RGBA").convert(mode)


def processor_of(checkpoint: Path) -> Idefics3Processor:
    """The processor for both: SmolVLM's own needs num2words."""
    values = json.loads((checkpoint / "config.json").read_text("utf-8"))
    settings = json.loads((checkpoint / "preprocessor_config.json").read_text("utf-8"))
    side = 28 // values["vision_config"]["patch_size"]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return Idefics3Processor(
        PROCESSORS[values["model_type"]].from_dict(settings),
        tokenizer,
        image_seq_len=(side // values.get("scale_factor", 2)) ** 2,
        chat_template=tokenizer.chat_template,
    )


def content(*parts: str | Image.Image) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in parts
    ]


def conversations() -> list[list[dict[str, Any]]]:
    wide, tall, small = (random_image(size) for size in ((100, 60), (60, 100), (28, 28)))
    return [
        [{"role": "user", "content": content(wide, "What is in this image?")}],
        [{"role": "user", "content": content("How many", small, " objects", tall, "?\n\n")}],
        [
            {"role": "system", "content": content("Answer in one sentence.")},
            {"role": "user", "content": content(tall, wide, "Which\n")},
            {"role": "assistant", "content": content("A red circle.")},
            {"role": "user", "content": content("And here?", small)},
        ],
        [{"role": "user", "content": content("No image at all")}],
    ]


def images_of(conversation: Sequence[dict[str, Any]]) -> list[Image.Image]:
    parts = [part for message in conversation for part in message["content"]]
    return [part["image"] for part in parts if part["type"] == "image"]


def inputs_of(processor: Idefics3Processor, conversation: list[dict[str, Any]]) -> Any:
    text = processor.apply_chat_template(conversation, add_generation_prompt=True)
    images = images_of(conversation)
    return processor(
        text=text,
        images=[images] if images else None,
        return_tensors="pt",
        add_special_tokens=False,  # the template writes them
    )


@pytest.mark.parametrize("detail", ["high", "low"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles(checkpoint: Path, size: tuple[int, int], detail: str) -> None:
    image_processor = processor_of(checkpoint).image_processor
    model = vlcore.load_vision_model(checkpoint)
    for mode in ("RGB", "RGBA", "L", "P"):
        image = random_image(size, mode)
        expected = image_processor(
            image,
            return_tensors="pt",
            return_row_col_info=True,
            do_image_splitting=detail == "high",
        )
        assert expected["pixel_attention_mask"].all()  # nothing for a vision encoder to mask
        inputs = model.preprocess(image, detail=detail)
        assert torch.equal(inputs.pixels, expected["pixel_values"][0])
        assert inputs.layout == (expected["rows"][0][0], expected["cols"][0][0])
        assert inputs.num_rows == 4 * len(inputs.pixels)


@pytest.mark.parametrize("image_size", [28, 56, 35])
def test_rows(write: Callable[..., Path], image_size: int) -> None:
    """Embeddings are equal, also if the encoder was trained on another size than the tiles'."""
    checkpoint = write("idefics3", image_size=image_size)
    oracle: Any = AutoModelForImageTextToText.from_pretrained(checkpoint)
    originals = [random_image(size) for size in SIZES]
    batch = processor_of(checkpoint).image_processor(
        [[image] for image in originals], return_tensors="pt"
    )
    model = vlcore.load_vision_model(checkpoint)
    with torch.inference_mode():
        expected = oracle.get_image_features(**batch).pooler_output
        images: Any = model.forward([model.preprocess(image) for image in originals])
    for image, reference in zip(images, expected, strict=True):
        torch.testing.assert_close(image.rows, reference, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("model_type", list(PROCESSORS))
@pytest.mark.parametrize("longest_edge", [84, 112, 28])
def test_prompts_and_answers(
    write: Callable[..., Path], model_type: str, longest_edge: int
) -> None:
    """Logits of the whole prompt tell whether every token and row is in its place.

    At 112 pixels an image is four tiles wide, and the tokenizer has tokens for three.
    """
    checkpoint = write(model_type, longest_edge=longest_edge)
    processor = processor_of(checkpoint)
    oracle: Any = AutoModelForImageTextToText.from_pretrained(checkpoint)
    options = {"max_new_tokens": 12, "skip_special_tokens": False, "output_logits": "all"}
    with vlcore.pipeline(checkpoint) as pipe, torch.inference_mode():
        for conversation in conversations():
            text = processor.apply_chat_template(conversation, add_generation_prompt=True)
            inputs = inputs_of(processor, conversation)
            length = inputs["input_ids"].shape[1]
            answer = pipe(conversation, options)
            assert pipe.template.render(conversation) == text
            assert answer.input_token_len == length
            assert answer.prompt_logits is not None
            torch.testing.assert_close(
                answer.prompt_logits, oracle(**inputs).logits[0], rtol=1e-4, atol=1e-4
            )
            generated = oracle.generate(**inputs, max_new_tokens=12, do_sample=False)
            expected = generated[0, length:].tolist()
            if answer.finish_reason == "stop":
                assert expected.pop() == oracle.generation_config.eos_token_id
            assert list(answer.token_ids) == expected


@pytest.mark.parametrize("grid", [(0, 0), (1, 1), (2, 3), (4, 1)])
def test_tokens_around_tiles_are_those_of_smolvlm(grid: tuple[int, int]) -> None:
    """Its processor cannot be made without num2words, but writes the prompt by a function."""
    parts = Idefics3Template("").expand(grid, 4 * (grid[0] * grid[1] + 1))
    texts = ("<image>" * part.num_rows if isinstance(part, Rows) else part.text for part in parts)
    tokens = ("<fake_token_around_image>", "<image>", "<global-img>")
    expected = get_image_prompt_string(*grid, 4, *tokens)  # type: ignore[no-untyped-call]
    assert "".join(texts) == expected

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from checkpoints import NUM_ROWS, write_llava
from PIL import Image
from weight_files import ReadSpy

import vlcore
from vlcore import PromptBuilder, Span
from vlcore.engines.base import EngineRequest
from vlcore.errors import ImageError, PromptError

RED = Image.new("RGB", (40, 30), "red")
BLUE = Image.new("RGB", (20, 50), "blue")
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "image", "image": RED}, {"type": "text", "text": "What </s> is it?"}],
    },
    {"role": "assistant", "content": "A red rectangle."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Same?"}, {"type": "image", "image": BLUE}],
    },
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("builder") / "checkpoint")


@pytest.fixture(scope="module")
def builder(checkpoint: Path) -> PromptBuilder:
    return vlcore.load_prompt_builder(checkpoint)


@pytest.mark.parametrize(
    "prompt", ["Hello", ("Same?", [RED, BLUE]), CONVERSATION], ids=["text", "pair", "messages"]
)
def test_the_prompt_is_the_one_that_the_engine_receives(
    builder: PromptBuilder, checkpoint: Path, prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[EngineRequest] = []
    with vlcore.pipeline(checkpoint, dtype="float32") as pipe:
        generate = pipe.engine.generate

        def spy(request: EngineRequest) -> Any:
            seen.append(request)
            return generate(request)

        monkeypatch.setattr(pipe.engine, "generate", spy)
        pipe(prompt, {"max_new_tokens": 1})
    assert builder.build(prompt) == seen[0].prompt


def test_spans_state_where_the_embeddings_of_each_image_are(builder: PromptBuilder) -> None:
    prompt = builder.build(CONVERSATION)
    assert [(span.image, span.first_row) for span in prompt.spans] == [(0, 0), (1, 0)]
    assert [span.stop - span.start for span in prompt.spans] == [NUM_ROWS, NUM_ROWS]
    assert all(0 < span.start < span.stop < len(prompt.token_ids) for span in prompt.spans)
    text = builder.transformers_tokenizer.decode(list(prompt.token_ids[prompt.spans[0].stop :]))
    assert "A red rectangle." in text


def test_a_prompt_without_images_needs_no_weights(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = ReadSpy(monkeypatch)
    assert vlcore.load_prompt_builder(checkpoint).build("Hello").spans == ()
    assert spy.names == []


def test_a_prompt_is_built_inside_a_running_event_loop(builder: PromptBuilder) -> None:
    async def build() -> tuple[Span, ...]:
        return builder.build(("What?", RED)).spans

    assert asyncio.run(build()) == builder.build(("What?", RED)).spans


def test_errors_are_those_of_the_pipeline(builder: PromptBuilder) -> None:
    with pytest.raises(PromptError):
        builder.build(3)  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        builder.build(("What?", "nowhere.png"))


def test_a_chat_template_is_chosen_by_name(builder: PromptBuilder, checkpoint: Path) -> None:
    other = vlcore.load_prompt_builder(checkpoint, chat_template="mistral_instruct")
    assert other.build("Hello") != builder.build("Hello")

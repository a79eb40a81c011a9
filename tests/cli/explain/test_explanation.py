from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import NUM_ROWS, write_json, write_llava
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from weight_files import ReadSpy

import vlcore
from vlcore import ChatTemplate, Control, ImageInputs, ImageSlot, Rows, TensorSource, Text
from vlcore.cli.explain.explanation import (
    Explanation,
    RowsLine,
    TokenLine,
    VocabularyEntries,
    explain,
)
from vlcore.engines.base import EngineRequest
from vlcore.errors import ImageError, OptionError, PluginContractError, PromptError
from vlcore.plugins.stages import ModelStages

GOLDEN = Path(__file__).parents[2] / "golden"
RED = Image.new("RGB", (40, 30), "red")
BLUE = Image.new("RGB", (20, 50), "blue")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("explanation") / "checkpoint")


@pytest.fixture
def stages(checkpoint: Path) -> ModelStages:
    return ModelStages(checkpoint)


def token_ids(explanation: Explanation) -> list[int | None]:
    """One entry a position: a token's id, or nothing under a row."""
    ids: list[int | None] = []
    for line in explanation.lines:
        assert (line.position if isinstance(line, TokenLine) else line.start) == len(ids)
        ids += [line.token_id] if isinstance(line, TokenLine) else [None] * line.num_rows
    return ids


def kinds(explanation: Explanation) -> dict[str, str]:
    return {line.entry: line.kind for line in explanation.lines if isinstance(line, TokenLine)}


def text_tensors(stages: ModelStages) -> list[TensorSource]:
    return list(stages.language_model().tensors.values())


def request_of(checkpoint: Path, prompt: Any, monkeypatch: pytest.MonkeyPatch) -> EngineRequest:
    """What the pipeline hands its engine for a prompt."""
    seen: list[EngineRequest] = []
    with vlcore.pipeline(checkpoint, dtype="float32") as pipe:
        engine = pipe._runner.engine
        generate = engine.generate

        def spy(request: EngineRequest) -> Any:
            seen.append(request)
            return generate(request)

        monkeypatch.setattr(engine, "generate", spy)
        pipe(prompt, {"max_new_tokens": 1})
    return seen[0]


@pytest.mark.parametrize(
    "prompt",
    ["Hello </s> you", ("Same?", [RED, BLUE]), ("Où? 😀\n", RED)],
    ids=["text", "two images", "bytes"],
)
def test_it_is_the_prompt_that_the_engine_gets(
    checkpoint: Path, stages: ModelStages, prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(checkpoint, prompt, monkeypatch)
    explanation = explain(stages, prompt)
    under_rows = {i for span in request.prompt.spans for i in range(span.start, span.stop)}
    expected = [None if i in under_rows else t for i, t in enumerate(request.prompt.token_ids)]
    assert token_ids(explanation) == expected
    assert explanation.length == len(request.prompt.token_ids)
    assert explanation.stop_token_ids == {2: "</s>"}
    assert explanation.stop_strings == ()


def test_images_are_runs_of_rows(stages: ModelStages) -> None:
    explanation = explain(stages, ("Same?", [RED, BLUE]))
    runs = [line for line in explanation.lines if isinstance(line, RowsLine)]
    assert [(run.image, run.first_row, run.last_row, run.num_rows) for run in runs] == [
        (0, 0, NUM_ROWS - 1, NUM_ROWS),
        (1, 0, NUM_ROWS - 1, NUM_ROWS),
    ]
    assert [(i.width, i.height, i.num_rows) for i in explanation.images] == [
        (40, 30, NUM_ROWS),
        (20, 50, NUM_ROWS),
    ]
    assert explanation.images[0].source == "a PIL image (RGB, 40 x 30)"
    assert explanation.num_image_rows == 2 * NUM_ROWS


def test_tokens_between_the_rows_of_an_image_stand_where_they_are(stages: ModelStages) -> None:
    class Split(ChatTemplate):
        stop = ("</s>", "USER:")

        def messages2prompt(self, messages: Any) -> Any:
            return (ImageSlot(0), Text("x</s>"), Control("</s>"))

        def expand(self, layout: Any, num_rows: int) -> Any:
            return (Rows(1), Control("</s>"), Rows(num_rows - 1))

    explanation = explain(stages, ("?", RED), chat_template=Split())
    first, second = (line for line in explanation.lines if isinstance(line, RowsLine))
    assert (first.start, first.first_row, first.last_row) == (1, 0, 0)
    assert (second.start, second.first_row, second.last_row) == (3, 1, NUM_ROWS - 1)
    between = explanation.lines[2]
    assert isinstance(between, TokenLine)
    assert (between.position, between.kind, between.text) == (2, "control", "</s>")
    assert explanation.template == "Split"
    assert explanation.stop_token_ids == {2: "</s>"}
    assert explanation.stop_strings == ("USER:",)
    assert explanation.num_special_tokens == 3  # BOS, the one between, the last


def test_what_a_user_types_is_text(stages: ModelStages) -> None:
    explanation = explain(stages, "</s>")
    assert explanation.num_special_tokens == 1
    assert kinds(explanation)["<s>"] == "control"
    assert set(kinds(explanation).values()) == {"control", "text"}
    assert explanation.num_text_tokens == len(explanation.lines) - 1


def test_the_context_is_what_the_answer_shares(checkpoint: Path) -> None:
    length = explain(ModelStages(checkpoint), "Hello").length
    assert explain(ModelStages(checkpoint), "Hello").num_left == 512 - length


def test_a_prompt_that_is_too_long_is_explained(tmp_path: Path) -> None:
    short = write_llava(tmp_path / "short", max_position_embeddings=8)
    explanation = explain(ModelStages(short), "Hello")
    assert explanation.length > explanation.context_length == 8
    assert explanation.num_left == 0


def test_no_weights_of_the_language_model_are_read(
    stages: ModelStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = ReadSpy(monkeypatch)
    explain(stages, "Hello")
    assert spy.names == []
    explain(stages, ("Hello", RED))
    assert any("vision_tower" in name for name in spy.names)
    assert set(spy.names).isdisjoint(source.name for source in text_tensors(stages))


def test_the_tower_does_not_run_where_the_rows_are_known(
    stages: ModelStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision_model = type(stages.vision_model())
    monkeypatch.setattr(vision_model, "tower", lambda *_: pytest.fail("the vision encoder ran"))
    explanation = explain(stages, ("Hello", RED))
    assert not explanation.images[0].was_encoded


def test_the_tower_counts_the_rows_where_nothing_else_does(
    stages: ModelStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = explain(stages, ("Hello", [RED, BLUE]))
    vision_model = type(stages.vision_model())
    preprocess = vision_model.preprocess

    def without_rows(self: Any, image: Image.Image, **options: Any) -> ImageInputs:
        inputs: ImageInputs = preprocess(self, image, **options)
        return replace(inputs, num_rows=None) if image.width == 40 else inputs

    monkeypatch.setattr(vision_model, "preprocess", without_rows)
    explanation = explain(stages, ("Hello", [RED, BLUE]))
    assert [image.was_encoded for image in explanation.images] == [True, False]
    assert explanation.lines == known.lines


def test_the_end_tokens_of_generation_config_are_shown(tmp_path: Path) -> None:
    checkpoint = write_llava(tmp_path / "checkpoint")
    write_json(checkpoint / "generation_config.json", {"eos_token_id": [2, 290]})
    stages = ModelStages(checkpoint)
    model = stages.language_model().to_transformers()
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == [2, 290]  # what an engine stops at
    assert list(explain(stages, "Hello").stop_token_ids) == [2, 290]


@pytest.mark.parametrize(
    ("prompt", "options", "error"),
    [
        (("Hello", "nowhere.png"), {}, ImageError),
        ("Hello", {"chat_template": "no_such"}, OptionError),
        (3, {}, PromptError),
        ([{"role": "user", "content": [{"type": "image", "image": RED, "detail": "low"}]}], {},
         OptionError),
    ],
)  # fmt: skip
def test_errors_are_those_of_the_pipeline(
    stages: ModelStages, prompt: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        explain(stages, prompt, **options)


def test_a_template_that_fails_is_named(stages: ModelStages) -> None:
    class Broken(ChatTemplate):
        def messages2prompt(self, messages: Any) -> Any:
            raise ZeroDivisionError("oops")

    with pytest.raises(PluginContractError, match=r"Broken\.messages2prompt failed: ZeroDiv.*oops"):
        explain(stages, "Hello", chat_template=Broken())


# -- pieces


def wrap(backend: Tokenizer) -> PreTrainedTokenizerBase:
    backend.add_special_tokens(["<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]


def byte_level() -> PreTrainedTokenizerBase:
    words = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return wrap(backend)


def unigram() -> PreTrainedTokenizerBase:
    vocabulary = [("<unk>", 0.0), *((character, -1.0) for character in "helo▁")]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return wrap(backend)


def word_level() -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.WordLevel(vocab={"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrap(backend)


def sentencepiece() -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        GOLDEN / "tokenization_llava"
    )
    return tokenizer


def lines(tokenizer: PreTrainedTokenizerBase, text: str) -> list[TokenLine]:
    entries = VocabularyEntries(tokenizer, {tokenizer.convert_tokens_to_ids("<s>")})  # type: ignore[arg-type]
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [entries.line(position, token_id) for position, token_id in enumerate(ids)]


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize("text", ["hello  you\t\n", "Où? 😀 ▁ \x00\x7f­ÿ", "漢字"])
def test_the_bytes_of_all_tokens_are_the_text(
    make: Callable[[], PreTrainedTokenizerBase], text: str
) -> None:
    raw = b"".join(line.raw for line in lines(make(), text))
    if make is sentencepiece:  # it writes every blank as the character that it shows blanks as
        raw, text = raw.removeprefix(b" "), text.replace("▁", " ")
    assert raw == text.encode("utf-8")


def test_a_part_of_a_character_has_no_text() -> None:
    assert [line.text for line in lines(byte_level(), "aé<s>")] == ["a", None, None, "<s>"]
    assert [line.kind for line in lines(byte_level(), "aé<s>")] == ["text"] * 3 + ["control"]
    assert lines(byte_level(), "é")[0].raw == b"\xc3"


@pytest.mark.parametrize(
    ("make", "text", "expected"),
    [(unigram, "he!", ["text", "text", "text", "unknown"]),
     (word_level, "hello you", ["text", "unknown"])],
)  # fmt: skip
def test_text_without_a_token_is_unknown(
    make: Callable[[], PreTrainedTokenizerBase], text: str, expected: list[str]
) -> None:
    assert [line.kind for line in lines(make(), text)] == expected

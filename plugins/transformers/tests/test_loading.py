"""Only what a stage needs is read, images share forward passes, and text views load."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers_families.checkpoints import write_checkpoint
from transformers_families.conversations import sample_image
from transformers_families.families import FAMILIES as TINY
from waits import until

import vlcore
from vlcore import Checkpoint, ConfigError, ImageEncoder, TensorError
from vlcore.testing import PluginConformance

PLUGIN = "vl-plugin-transformers"
VIEWS = {
    "LlamaForCausalLM": (
        *("deepseek_vl", "deepseek_vl_hybrid", "idefics3", "janus", "llava", "llava_next"),
        *("llava_next_video", "mistral3", "smolvlm", "video_llava", "vipllava"),
    ),
    "Qwen2ForCausalLM": (
        *("fast_vlm", "got_ocr2", "internvl", "llava_onevision", "ovis2", "pp_chart2table"),
        "video_llama_3",
    ),
    "Qwen3ForCausalLM": ("lighton_ocr", "qianfan_ocr"),
}
"""Families whose language model is one that TurboMind knows, by its architecture there."""


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("qwen2_vl") / "model", "qwen2_vl").directory


@pytest.fixture(scope="module")
def internvl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("internvl") / "model", "internvl").directory


@pytest.fixture
def read_names(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the tensors that are read."""
    names: set[str] = set()
    read = Checkpoint.tensors

    def record(self: Checkpoint, wanted: Iterable[str], **options: Any) -> Iterator[Any]:
        wanted = list(wanted)
        names.update(wanted)
        return read(self, wanted, **options)

    monkeypatch.setattr(Checkpoint, "tensors", record)
    return names


@pytest.mark.parametrize("name", ["qwen", "internvl"])
def test_each_stage_reads_only_its_own_tensors(
    name: str, read_names: set[str], request: pytest.FixtureRequest
) -> None:
    directory = request.getfixturevalue(name)
    vlcore.load_vision_model(directory, plugin=PLUGIN)
    vision = set(read_names)
    read_names.clear()
    vlcore.load_language_model(directory, plugin=PLUGIN).to_transformers()
    assert vision
    assert read_names
    assert vision.isdisjoint(read_names)
    assert vision | read_names == set(Checkpoint.open(directory).tensor_names)


def test_images_of_different_requests_share_forward_passes(qwen: Path) -> None:
    model = vlcore.load_vision_model(qwen, plugin=PLUGIN)
    is_free = threading.Event()
    batches: list[int] = []
    forward = model.forward

    def wait(inputs: Sequence[Any]) -> Any:
        batches.append(len(inputs))
        assert is_free.wait(300)
        return forward(inputs)

    model.forward = wait  # type: ignore[method-assign]
    images = [sample_image(number, (60 + 20 * number, 90)) for number in range(8)]

    async def encode() -> None:
        async with ImageEncoder(model, max_batch_size=8) as encoder:
            requests = [asyncio.create_task(encoder.encode([image])) for image in images]
            # All images are in the batch that waits, or in the queue of the next one.
            await until(lambda: sum(batches) + encoder.stats().num_waiting == 8)
            is_free.set()
            await asyncio.gather(*requests)

    asyncio.run(encode())
    assert sum(batches) == 8
    assert len(batches) <= 2


def _view(name: str, architecture: str) -> Any:
    missing = [package for package in TINY[name].requires if find_spec(package) is None]
    marks = [] if name == "internvl" else [pytest.mark.slow]
    if missing:
        marks.append(pytest.mark.skip(reason=f"{' and '.join(missing)} not installed"))
    return pytest.param(name, architecture, id=name, marks=marks)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [_view(name, architecture) for architecture, names in VIEWS.items() for name in names],
)
def test_a_text_view_loads_as_an_ordinary_text_model(
    name: str, architecture: str, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", name).directory
    language_model = vlcore.load_language_model(checkpoint, plugin=PLUGIN)
    view = language_model.write_view(tmp_path / "view")
    assert json.loads((view / "config.json").read_text())["architectures"] == [architecture]
    loaded = AutoModelForCausalLM.from_pretrained(view, dtype=torch.float32)
    token_ids = torch.arange(5, 40)[None]
    with torch.inference_mode():
        expected = language_model.to_transformers("cpu", torch.float32)(input_ids=token_ids)
        torch.testing.assert_close(loaded(input_ids=token_ids).logits, expected.logits)


def test_a_family_without_a_text_only_class_has_no_text_view(qwen: Path, tmp_path: Path) -> None:
    language_model = vlcore.load_language_model(qwen, plugin=PLUGIN)
    with pytest.raises(ConfigError, match=r"no text-only class.*Qwen2VLForConditionalGeneration"):
        language_model.write_view(tmp_path / "view")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers is 1000000000"),
        ({"text_config": {"hidden_size": "wide"}}, "transformers cannot read config.json"),
    ],
    ids=["layers", "type"],
)
def test_a_configuration_that_cannot_be_built_is_refused_at_once(
    changes: dict[str, Any], message: str, internvl: Path, tmp_path: Path
) -> None:
    for file in internvl.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    config = json.loads((internvl / "config.json").read_text())
    for key, values in changes.items():
        config[key] |= values
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        vlcore.load_vision_model(tmp_path, plugin=PLUGIN)


def test_missing_tensors_are_listed(internvl: Path, tmp_path: Path) -> None:
    for file in internvl.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    config = json.loads((internvl / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TensorError, match=r"lacks .* tensor"):
        vlcore.load_vision_model(tmp_path, plugin=PLUGIN)


def test_a_checkpoint_without_a_chat_template_is_refused(internvl: Path, tmp_path: Path) -> None:
    for file in internvl.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(ConfigError, match="has no chat template"):
        vlcore.load_chat_template(tmp_path, plugin=PLUGIN)


@pytest.fixture(scope="module")
def checkpoint(internvl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose answers end with the token that its template writes after them."""
    directory = tmp_path_factory.mktemp("ends") / "model"
    shutil.copytree(internvl, directory)
    token_id = AutoTokenizer.from_pretrained(directory).convert_tokens_to_ids("<|im_end|>")
    file = directory / "generation_config.json"
    settings = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(settings | {"eos_token_id": [2, token_id]}), "utf-8")
    return directory


@pytest.mark.slow
class TestInternVL(PluginConformance):
    plugin = PLUGIN

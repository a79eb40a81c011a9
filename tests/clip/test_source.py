from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import write_llava
from torch import Tensor
from weight_files import ReadSpy, read_all, single_safetensors

from vlcore import Checkpoint, CheckpointNotFoundError, ConfigError, TensorError
from vlcore.clip import ClipSource, ClipTower, module_sources

INSIDE = "model.vision_tower.vision_tower.vision_model."
CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A checkpoint with its encoder inside; ``clip`` has its configuration and no weights."""
    return Checkpoint.open(write_llava(tmp_path))


def move_encoder(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """Move the encoder's tensors to ``clip``, and return them."""
    stored = read_all(checkpoint.directory)
    tower = {name: stored.pop(name) for name in [*stored] if name.startswith(INSIDE)}
    tower = {prefix + name.removeprefix(INSIDE): tensor for name, tensor in tower.items()}
    single_safetensors(checkpoint.directory, stored)
    single_safetensors(checkpoint.directory / "clip", tower)
    return tower


def load(source: ClipSource, layer: int = -2) -> ClipTower:
    return source.load_tower(layer, device=CPU, dtype=torch.float32)


def assert_same(tower: ClipTower, other: ClipTower) -> None:
    state = other.state_dict()
    assert tower.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in tower.state_dict().items())


def test_an_encoder_inside_the_checkpoint_that_refers_to_it(checkpoint: Checkpoint) -> None:
    source = ClipSource.named(checkpoint, "clip", ("elsewhere.", INSIDE))
    assert (source.checkpoint, source.prefix) == (checkpoint, INSIDE)
    assert source.config.image_size == source.processor.edge == 28


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_an_encoder_in_another_directory(checkpoint: Checkpoint, prefix: str) -> None:
    expected = load(ClipSource.named(checkpoint, "clip", (INSIDE,)))
    move_encoder(checkpoint, prefix)
    source = ClipSource.named(Checkpoint.open(checkpoint.directory), "clip", (INSIDE,))
    assert source.checkpoint.directory == checkpoint.directory / "clip"
    assert source.prefix == prefix
    assert_same(load(source), expected)


def test_the_encoder_inside_takes_precedence(checkpoint: Checkpoint) -> None:
    stored = read_all(checkpoint.directory)
    move_encoder(checkpoint, "vision_model.")
    single_safetensors(checkpoint.directory, stored)
    source = ClipSource.named(Checkpoint.open(checkpoint.directory), "clip", (INSIDE,))
    assert source.checkpoint.directory == checkpoint.directory


def test_an_encoder_that_the_config_describes(checkpoint: Checkpoint) -> None:
    clip = json.loads((checkpoint.directory / "clip" / "config.json").read_text())
    source = ClipSource.inside(checkpoint, clip, {"crop_size": 28}, ("", INSIDE))
    assert_same(load(source), load(ClipSource.named(checkpoint, "clip", (INSIDE,))))


def test_layers_above_the_hidden_state_are_not_read(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = ReadSpy(monkeypatch)
    tower = load(ClipSource.named(checkpoint, "clip", (INSIDE,)), 1)
    assert len(tower.encoder.layers) == 1
    assert {name.removeprefix(INSIDE) for name in spy.names} == set(tower.state_dict())
    assert not tower.training


@pytest.mark.parametrize("layer", [-4, 3])
def test_the_first_and_the_last_hidden_state(checkpoint: Checkpoint, layer: int) -> None:
    tower = load(ClipSource.named(checkpoint, "clip", (INSIDE,)), layer)
    assert len(tower.encoder.layers) == max(layer, 0)


@pytest.mark.parametrize("layer", [-5, 4])
def test_an_unknown_hidden_state_is_reported(checkpoint: Checkpoint, layer: int) -> None:
    source = ClipSource.named(checkpoint, "clip", (INSIDE,))
    with pytest.raises(
        ConfigError, match=f"hidden state {layer} of the vision encoder is requested"
    ):
        load(source, layer)


def test_a_missing_encoder_is_reported(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"refers to '\./gone'"):
        ClipSource.named(checkpoint, "./gone", (INSIDE,))
    with pytest.raises(TensorError, match=r"clip holds no weights"):
        ClipSource.named(checkpoint, "clip", ("elsewhere.",))
    single_safetensors(checkpoint.directory / "clip", {"x": torch.zeros(1)})
    with pytest.raises(TensorError, match=r"neither .* nor the vision encoder .* holds CLIP"):
        ClipSource.named(checkpoint, "clip", ("elsewhere.",))
    with pytest.raises(TensorError, match=r"holds no CLIP vision weights \(elsewhere\.embeddings"):
        ClipSource.inside(checkpoint, {}, {}, ("elsewhere.", "nowhere."))


def test_a_modules_sources_are_its_own_tensors_and_the_stored_ones(checkpoint: Checkpoint) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False))
    sources = module_sources(module, checkpoint, {"model.mm_projector.": ""})
    names = {
        key: source.name.removeprefix("model.mm_projector.") for key, source in sources.items()
    }
    keys = {"0.weight", "0.bias", "1.weight", "2.weight", "2.bias"}
    assert names == {key: key for key in keys}


@pytest.mark.parametrize("path", ["/data/train/clip", r"D:\models\clip", "/old/clip/"])
def test_a_path_of_another_machine_is_looked_up_in_the_checkpoint(
    checkpoint: Checkpoint, path: str
) -> None:
    assert_same(
        load(ClipSource.named(checkpoint, path, (INSIDE,)), 2),
        load(ClipSource.named(checkpoint, "clip", (INSIDE,)), 2),
    )


def test_the_error_for_a_path_of_another_machine_says_what_to_put_where(
    checkpoint: Checkpoint,
) -> None:
    with pytest.raises(
        CheckpointNotFoundError, match=r"put config\.json and .* into the folder 'vit-large' of"
    ):
        ClipSource.named(checkpoint, "/data/train/vit-large", (INSIDE,))


def test_more_layers_than_tensors_are_an_error_at_once(checkpoint: Checkpoint) -> None:
    path = checkpoint.directory / "clip" / "config.json"
    config = json.loads(path.read_text())
    sizes = config.get("vision_config", config)
    sizes["num_hidden_layers"] = 10**6
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="num_hidden_layers of the vision encoder is 1000000"):
        load(ClipSource.named(Checkpoint(checkpoint.directory), "clip", (INSIDE,)), -1)

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import TOKENIZER, write_json, write_llava
from torch import Tensor, nn
from transformers import CLIPVisionModel, PixtralVisionModel, SiglipVisionModel
from weight_files import (
    LAYOUTS,
    FakeHub,
    ReadSpy,
    Tensors,
    read_all,
    sharded_bin,
    sharded_safetensors,
    single_bin,
    single_safetensors,
)

import vlcore
from vlcore import Checkpoint, TensorSource, empty_weights, renamed
from vlcore.errors import CheckpointError, CheckpointNotFoundError, ConfigError, TensorError

Writer = Callable[[Path, Tensors], None]


def some_tensors() -> dict[str, Tensor]:
    return {
        "a.weight": torch.arange(6, dtype=torch.float16).view(2, 3),
        "a.bias": torch.tensor([0.5, -2.0]),
        "b.weight": torch.full((1,), 3.0, dtype=torch.bfloat16),
        "b.counts": torch.tensor([1, 2, 3]),
    }


def write_checkpoint(directory: Path, write: Writer = single_safetensors) -> Path:
    directory.mkdir(exist_ok=True, parents=True)
    write_json(directory / "config.json", {"architectures": ["MadeUp"]})
    write(directory, some_tensors())
    return directory


def read(checkpoint: Checkpoint, **options: Any) -> dict[str, Tensor]:
    return dict(checkpoint.tensors(checkpoint.tensor_names, **options))


# -- opening


def test_a_directory_is_opened(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path))
    assert checkpoint.config == {"architectures": ["MadeUp"]}
    assert checkpoint.name == str(tmp_path)
    assert repr(checkpoint) == f"Checkpoint({str(tmp_path)!r})"


def test_the_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_checkpoint(tmp_path / "model")
    assert Checkpoint.open("~/model").directory == tmp_path / "model"


@pytest.mark.parametrize("model", ["./absent", "/absent/model", "absent", "a/b/c", "~/absent"])
def test_neither_a_directory_nor_a_hub_repo_id(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path / "cache", monkeypatch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointNotFoundError, match=r"is not a Hub repo id \(organisation/name\) either"
    ):
        Checkpoint.open(model)
    assert hub.requests == []


def test_a_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointNotFoundError, match=r"'.*model\.safetensors' is a file"):
        Checkpoint.open(file)


# -- the Hub


def test_a_hub_checkpoint_downloads_only_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "source", sharded_safetensors)
    for filename in ("modeling_code.py", "tokenizer.model", "image.png"):
        (source / filename).write_text("x")
    hub = FakeHub(tmp_path / "cache", monkeypatch)
    hub.repositories["maker/model"] = source
    checkpoint = Checkpoint.open("maker/model", revision="v2")
    small = {"config.json", "model.safetensors.index.json", "tokenizer.model"}
    assert checkpoint.name == "maker/model"
    assert checkpoint.is_remote
    assert not Checkpoint.open(source).is_remote
    assert hub.fetched("maker/model") == small

    name, tensor = next(checkpoint.tensors(["a.bias"]))
    assert (name, tensor.tolist()) == ("a.bias", [0.5, -2.0])
    shard = checkpoint.file_of("a.bias").name
    assert hub.fetched("maker/model") == small | {shard}
    assert {revision for _, revision, _ in hub.requests} == {"v2"}


@pytest.mark.parametrize("write", [single_safetensors, single_bin])
def test_a_hub_checkpoint_with_one_weight_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Writer
) -> None:
    hub = FakeHub(tmp_path / "cache", monkeypatch)
    hub.repositories["maker/model"] = write_checkpoint(tmp_path / "source", write)
    assert set(read(Checkpoint.open("maker/model"))) == set(some_tensors())


def test_the_error_for_an_unreachable_hub_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeHub(tmp_path / "cache", monkeypatch)
    with pytest.raises(CheckpointNotFoundError) as caught:
        Checkpoint.open("maker/absent", revision="v1")
    message = str(caught.value)
    assert "no directory 'maker/absent'" in message
    assert "(revision v1) could not be downloaded: OSError" in message
    assert "pass its directory" in message


def test_a_hub_that_becomes_unreachable_before_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path / "cache", monkeypatch)
    hub.repositories["maker/model"] = write_checkpoint(tmp_path / "source", sharded_safetensors)
    checkpoint = Checkpoint.open("maker/model")
    hub.repositories.clear()
    with pytest.raises(CheckpointNotFoundError, match=r"model-0000\d-of-00002.safetensors of"):
        read(checkpoint)


# -- JSON


def test_the_error_for_an_absent_config_lists_the_files(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(ConfigError, match=r"has no config\.json.* It holds notes\.md"):
        Checkpoint.open(tmp_path).config  # noqa: B018


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not readable JSON"),
        (b'{"architectures": ', "is not readable JSON"),
        (b"\xff\xfe{}", "is not readable JSON"),
        (b"[]", "must hold a JSON object; it holds a list"),
        (b'"text"', "must hold a JSON object; it holds a str"),
        (b"null", "must hold a JSON object; it holds a NoneType"),
        (b"[" * 100_000, "is not readable JSON"),
    ],
    ids=["empty", "cut off", "UTF-16", "list", "string", "null", "deep"],
)
def test_a_config_that_is_not_an_object(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        Checkpoint.open(tmp_path).config  # noqa: B018
    assert str(tmp_path / "config.json") in str(caught.value)


def test_an_absent_json_file_is_none(tmp_path: Path) -> None:
    assert Checkpoint.open(tmp_path).read_json("generation_config.json") is None


def test_the_chat_template_is_found_wherever_it_is_stored(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path).chat_template is None
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": "of the tokenizer"})
    assert Checkpoint(tmp_path).chat_template == "of the tokenizer"
    write_json(tmp_path / "chat_template.json", {"chat_template": "of the old processor"})
    assert Checkpoint(tmp_path).chat_template == "of the old processor"
    (tmp_path / "chat_template.jinja").write_text("of its own")
    assert Checkpoint(tmp_path).chat_template == "of its own"


def test_special_tokens_are_read_in_both_notations(tmp_path: Path) -> None:
    values = {"eos_token": "</s>", "bos_token": {"content": "<s>"}, "model_max_length": 9}
    write_json(tmp_path / "tokenizer_config.json", values | {"pad_token": None})
    assert Checkpoint.open(tmp_path).special_tokens == {"eos_token": "</s>", "bos_token": "<s>"}


def test_the_tokenizer_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((TOKENIZER / "tokenizer.model").read_bytes())
    config = (TOKENIZER / "tokenizer_config.json").read_text()
    (tmp_path / "tokenizer_config.json").write_text(config)
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    assert Checkpoint.open(tmp_path).tokenizer().eos_token == "</s>"


def test_a_missing_tokenizer_is_reported(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    with pytest.raises(CheckpointError, match=r"has no tokenizer: expected one of tokenizer\.json"):
        Checkpoint.open(tmp_path).tokenizer()


# -- related checkpoints


def test_a_related_checkpoint_is_inside_or_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = Checkpoint(write_checkpoint(tmp_path / "main"))
    write_checkpoint(tmp_path / "main" / "tower")
    hub = FakeHub(tmp_path / "cache", monkeypatch)
    hub.repositories["maker/tower"] = write_checkpoint(tmp_path / "source")
    assert main.related("tower").directory == tmp_path / "main" / "tower"
    assert main.related("./tower").config == {"architectures": ["MadeUp"]}
    assert main.related("maker/tower").name == "maker/tower"
    assert main.related(str(tmp_path / "source")).directory == tmp_path / "source"


def test_a_folder_of_a_hub_repository_downloads_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = write_checkpoint(tmp_path / "source")
    write_checkpoint(repository / "towers" / "a", single_bin)
    write_checkpoint(repository / "towers" / "b", single_bin)
    hub = FakeHub(tmp_path / "cache", monkeypatch)
    hub.repositories["maker/model"] = repository
    tower = Checkpoint.open("maker/model").related("./towers/a")
    assert tower.name == "maker/model/towers/a"
    assert not any(file.endswith(".bin") for file in hub.fetched("maker/model"))
    assert read(tower).keys() == some_tensors().keys()
    assert "towers/a/pytorch_model.bin" in hub.fetched("maker/model")
    assert "towers/b/pytorch_model.bin" not in hub.fetched("maker/model")


def test_an_absent_related_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(tmp_path / "cache", monkeypatch)
    main = Checkpoint(write_checkpoint(tmp_path / "main"))
    with pytest.raises(
        CheckpointNotFoundError, match="refers to 'maker/tower', which is not a direct"
    ):
        main.related("maker/tower")


# -- reading tensors


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_layout_gives_the_same_tensors(tmp_path: Path, write: Writer) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, write))
    expected = some_tensors()
    tensors = read(checkpoint)
    assert checkpoint.tensor_names == tuple(sorted(expected))
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("write", LAYOUTS)
def test_floating_tensors_are_converted_and_others_are_not(tmp_path: Path, write: Writer) -> None:
    tensors = read(Checkpoint.open(write_checkpoint(tmp_path, write)), dtype=torch.float64)
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    assert dtypes.pop("b.counts") == torch.int64
    assert set(dtypes.values()) == {torch.float64}


def test_pickles_of_the_old_format_are_read(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    torch.save(some_tensors(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(read(Checkpoint.open(tmp_path))["a.bias"], some_tensors()["a.bias"])


def test_only_requested_tensors_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, sharded_safetensors))
    spy = ReadSpy(monkeypatch)
    assert [name for name, _ in checkpoint.tensors(["a.bias", "a.bias"])] == ["a.bias"]
    assert spy.names == ["a.bias"]
    assert spy.files == [checkpoint.file_of("a.bias")]


def test_names_are_found_by_prefix(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path))
    assert checkpoint.has_tensors("a.")
    assert not checkpoint.has_tensors("c.")


@pytest.mark.parametrize("write", [single_bin, sharded_bin])
def test_safetensors_are_preferred_to_pickles(tmp_path: Path, write: Writer) -> None:
    write_checkpoint(tmp_path, write)
    single_safetensors(tmp_path, {"other": torch.zeros(1)})
    assert Checkpoint.open(tmp_path).tensor_names == ("other",)


# -- damaged weights


def test_no_weights(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    with pytest.raises(
        TensorError, match=r"holds no weights: expected model\.safetensors, pytorch"
    ):
        Checkpoint.open(tmp_path).tensor_names  # noqa: B018


@pytest.mark.parametrize("write", [sharded_safetensors, sharded_bin])
def test_a_missing_shard_is_named(tmp_path: Path, write: Writer) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, write))
    shard = checkpoint.file_of("b.counts")
    shard.unlink()
    with pytest.raises(TensorError, match="is missing: the download may be incomplete") as caught:
        read(checkpoint)
    assert str(shard) in str(caught.value)


@pytest.mark.parametrize("write", LAYOUTS)
@pytest.mark.parametrize("num_bytes", [0, 5, 40, -1])
def test_a_truncated_file_is_named(tmp_path: Path, write: Writer, num_bytes: int) -> None:
    write_checkpoint(tmp_path, write)
    file = sorted(path for path in tmp_path.iterdir() if path.suffix != ".json")[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:num_bytes])
    with pytest.raises(TensorError, match="damaged") as caught:
        read(Checkpoint.open(tmp_path))
    assert str(file) in str(caught.value)
    assert f"({file.stat().st_size} bytes)" in str(caught.value)


class _RunsCode:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, zipped: bool) -> None:
    write_json(tmp_path / "config.json", {})
    harm = tmp_path / "harm"
    state = {"a": torch.zeros(1), "b": _RunsCode(str(harm))}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(TensorError, match="holds more than plain tensors"):
        read(Checkpoint.open(tmp_path))
    assert not harm.exists()


def test_a_pickle_that_is_not_a_dictionary(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "pytorch_model.bin")
    with pytest.raises(TensorError, match="must hold a dictionary of tensors, not list"):
        read(Checkpoint.open(tmp_path))


def test_a_pickle_with_something_else_among_the_tensors(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "epoch": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(TensorError, match="'epoch'"):
        read(Checkpoint.open(tmp_path))


def test_missing_names_are_listed_and_shortened(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path))
    with pytest.raises(TensorError, match=r"lacks 2 tensor\(s\): c, d$"):
        dict(checkpoint.tensors(["c", "a.bias", "d"]))
    with pytest.raises(TensorError, match=r"lacks 30 tensor\(s\): x0, .*, x19 and 10 more$"):
        dict(checkpoint.tensors([f"x{i}" for i in range(30)]))
    with pytest.raises(TensorError, match=r"'c' is missing from .*, which has 4 tensors"):
        checkpoint.file_of("c")


@pytest.mark.parametrize("write", [sharded_safetensors, sharded_bin])
def test_an_index_that_names_the_wrong_file_is_reported(tmp_path: Path, write: Writer) -> None:
    write_checkpoint(tmp_path, write)
    path = next(tmp_path.glob("*.index.json"))
    index = json.loads(path.read_text())
    index["weight_map"]["a.bias"], index["weight_map"]["a.weight"] = (
        index["weight_map"]["a.weight"],
        index["weight_map"]["a.bias"],
    )
    write_json(path, index)
    with pytest.raises(TensorError, match=r"tensor 'a\.(bias|weight)' cannot be read from"):
        read(Checkpoint.open(tmp_path))


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_without_a_map_is_reported(tmp_path: Path, index: dict[str, Any]) -> None:
    write_json(tmp_path / "model.safetensors.index.json", index)
    with pytest.raises(ConfigError, match=r"model\.safetensors\.index\.json has no weight_map"):
        Checkpoint.open(tmp_path).tensor_names  # noqa: B018


def test_an_index_cannot_reach_a_file_outside_the_checkpoint(tmp_path: Path) -> None:
    outside = write_checkpoint(tmp_path / "outside")
    inside = tmp_path / "inside"
    inside.mkdir()
    weight_map = {"a.bias": str(outside / "model.safetensors"), "b": "../outside/model.safetensors"}
    write_json(inside / "model.safetensors.index.json", {"weight_map": weight_map})
    checkpoint = Checkpoint.open(inside)
    assert checkpoint.file_of("a.bias") == inside / "model.safetensors"
    assert checkpoint.file_of("b") == inside / "model.safetensors"


# -- filling a module


class _Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2, device="meta")


def fill(directory: Path, sources: dict[str, TensorSource]) -> nn.Module:
    module = _Module()
    Checkpoint.open(directory).load_module(module, sources, dtype=torch.float32)
    return module


WHOLE = {"a.weight": TensorSource("a.weight"), "a.bias": TensorSource("a.bias")}


def test_a_module_is_filled_and_frozen(tmp_path: Path) -> None:
    state = fill(write_checkpoint(tmp_path), WHOLE).state_dict()
    assert torch.equal(state["a.weight"], some_tensors()["a.weight"].float())
    assert torch.equal(state["a.bias"], some_tensors()["a.bias"])


def test_a_filled_module_requires_no_gradient(tmp_path: Path) -> None:
    module = fill(write_checkpoint(tmp_path), WHOLE)
    assert not any(parameter.requires_grad for parameter in module.parameters())


class _Inner(nn.Module):
    frequencies: Tensor

    def __init__(self, ids: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.rand(4), persistent=False)
        self.register_buffer("ids", ids, persistent=False)


class _WithBuffers(_Module):
    """Has a dropout, and buffers that no checkpoint holds, one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        ids = torch.arange(3)
        self.register_buffer("ids", ids, persistent=False)
        self.inner = _Inner(ids)


def devices_of(module: nn.Module) -> dict[str, str]:
    tensors = [*module.named_parameters(), *module.named_buffers(remove_duplicate=False)]
    return {name: tensor.device.type for name, tensor in tensors}


def test_a_filled_module_is_ready_for_inference(tmp_path: Path) -> None:
    module = _WithBuffers().train()
    before = module.inner.frequencies.clone()
    Checkpoint.open(write_checkpoint(tmp_path)).load_module(module, WHOLE, dtype=torch.bfloat16)
    assert not any(part.training for part in module.modules())
    assert set(devices_of(module).values()) == {"cpu"}
    assert torch.equal(module.inner.frequencies, before)  # still in float32
    assert module.inner.frequencies.dtype == torch.float32


def test_buffers_go_to_the_device_of_the_weights(tmp_path: Path) -> None:
    # The meta device stands in for CUDA: what is left on the CPU is seen either way.
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path))
    module = _WithBuffers()
    checkpoint.load_module(module, WHOLE, device="meta")
    assert set(devices_of(module).values()) == {"meta"}
    assert module.inner.frequencies.shape == (4,)
    assert "inner.frequencies" not in module.state_dict()


def test_buffers_follow_the_device_of_their_part(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path))
    module = _WithBuffers()
    checkpoint.load_module(module, WHOLE, device={"": "cpu", "inner": "meta"})
    assert devices_of(module) == {
        "a.weight": "cpu",
        "a.bias": "cpu",
        "ids": "cpu",
        "inner.frequencies": "meta",
        "inner.ids": "meta",
    }


def test_a_persistent_buffer_is_read_like_a_parameter(tmp_path: Path) -> None:
    module = nn.BatchNorm1d(2)
    stored = {name: torch.ones_like(tensor) * 7 for name, tensor in module.state_dict().items()}
    write_json(tmp_path / "config.json", {})
    single_safetensors(tmp_path, stored)
    sources = {name: TensorSource(name) for name in stored}
    Checkpoint.open(tmp_path).load_module(module, sources, dtype=torch.float16)
    assert module.running_mean is not None
    assert (module.running_mean.dtype, module.running_mean.tolist()) == (torch.float16, [7, 7])


def test_a_buffer_without_values_is_an_error(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = _WithBuffers()
    with pytest.raises(TensorError, match=r"buffer 'ids' of _WithBuffers .* vlcore\.empty_weights"):
        Checkpoint.open(write_checkpoint(tmp_path)).load_module(module, WHOLE)


@pytest.mark.parametrize("kind", [CLIPVisionModel, SiglipVisionModel, PixtralVisionModel])
def test_a_transformers_vision_model_is_on_one_device(tmp_path: Path, kind: Any) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = kind.config_class(**sizes, num_attention_heads=2, image_size=8, patch_size=4)
    stored = kind(config).state_dict()
    write_json(tmp_path / "config.json", {})
    single_safetensors(tmp_path, {f"visual.{name}": value for name, value in stored.items()})
    checkpoint = Checkpoint.open(tmp_path)
    with empty_weights():
        tower = kind(config)
    assert list(tower.buffers())
    checkpoint.load_module(tower, renamed(checkpoint, {"visual.": ""}), device="meta")
    assert set(devices_of(tower).values()) == {"meta"}
    assert not tower.training


def test_a_tensor_may_be_part_of_a_stored_one(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    fused = torch.arange(20.0).view(4, 5)
    single_safetensors(tmp_path, {"fused": fused[:, :3].contiguous(), "bias": torch.ones(4)})
    sources = {
        "a.weight": TensorSource("fused", slice(2, 4)),
        "a.bias": TensorSource("bias", slice(0, 2)),
    }
    weight = fill(tmp_path, sources).state_dict()["a.weight"]
    assert torch.equal(weight, fused[2:4, :3])
    assert weight.untyped_storage().nbytes() == weight.nbytes  # holds on to nothing else


def test_missing_tensors_are_listed(tmp_path: Path) -> None:
    with pytest.raises(
        TensorError, match=r"lacks 1 tensor\(s\) that config\.json asks for: a\.bias"
    ):
        fill(write_checkpoint(tmp_path), {"a.weight": TensorSource("a.weight")})


def test_unused_tensors_are_listed(tmp_path: Path) -> None:
    with pytest.raises(TensorError, match=r"holds 1 tensor\(s\) .* does not use: b\.weight"):
        fill(write_checkpoint(tmp_path), WHOLE | {"b": TensorSource("b.weight")})


def test_misshapen_tensors_are_listed(tmp_path: Path) -> None:
    crossed = {"a.weight": TensorSource("a.bias"), "a.bias": TensorSource("b.weight")}
    with pytest.raises(TensorError, match="wrong shapes") as caught:
        fill(write_checkpoint(tmp_path), crossed)
    assert "a.bias gives [2] where config.json asks for [2, 3]" in str(caught.value)
    assert "b.weight gives [1] where config.json asks for [2]" in str(caught.value)


# -- fingerprints


def fingerprint(directory: Path) -> str:
    return Checkpoint.open(directory).fingerprint


@pytest.mark.parametrize("write", LAYOUTS)
def test_the_fingerprint_is_stable_while_the_checkpoint_is_unchanged(
    tmp_path: Path, write: Writer
) -> None:
    before = fingerprint(write_checkpoint(tmp_path, write))
    (tmp_path / "README.md").write_text("words")
    assert fingerprint(tmp_path) == before
    assert fingerprint(tmp_path / ".." / tmp_path.name) == before


@pytest.mark.parametrize("write", LAYOUTS)
def test_the_fingerprint_changes_with_any_weight_file(tmp_path: Path, write: Writer) -> None:
    write_checkpoint(tmp_path, write)
    for file in sorted(path for path in tmp_path.iterdir() if path.suffix != ".json"):
        before = fingerprint(tmp_path)
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert fingerprint(tmp_path) != before


def test_the_fingerprint_changes_with_size_config_and_path(tmp_path: Path) -> None:
    seen = {fingerprint(write_checkpoint(tmp_path / "first"))}
    config = tmp_path / "first" / "config.json"
    config.write_text(config.read_text() + " ")
    seen.add(fingerprint(tmp_path / "first"))
    file = tmp_path / "first" / "model.safetensors"
    times = file.stat()
    single_safetensors(tmp_path / "first", {"a": torch.zeros(100)})
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    seen.add(fingerprint(tmp_path / "first"))
    (tmp_path / "first").rename(tmp_path / "second")
    seen.add(fingerprint(tmp_path / "second"))
    assert len(seen) == 4


# -- one part of a large checkpoint


@pytest.mark.parametrize("sharded", [False, True])
def test_a_vision_model_reads_its_own_tensors_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    write_llava(tmp_path, vocab_size=6500)
    stored = read_all(tmp_path)
    if sharded:
        (tmp_path / "model.safetensors").unlink()
        sharded_safetensors(tmp_path, stored, num_shards=3)
    used = {
        name
        for name in stored
        if name.startswith(("model.mm_projector.", "model.vision_tower."))
        and "post_layernorm." not in name
        and ".layers.2." not in name  # the hidden state before the last layer is the one selected
    }
    is_text = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
    text_bytes = sum(tensor.nbytes for name, tensor in stored.items() if name.startswith(is_text))
    own_bytes = sum(stored[name].nbytes for name in used)
    assert text_bytes > 7 * own_bytes

    spy = ReadSpy(monkeypatch)
    vlcore.load_vision_model(tmp_path)
    assert sorted(spy.names) == sorted(used)
    assert spy.num_bytes == own_bytes
    assert not any(name.startswith(is_text) for name in spy.names)


@pytest.mark.parametrize("model", ["", None, 5])
def test_a_value_that_cannot_be_a_checkpoint_is_reported(model: Any) -> None:
    with pytest.raises(CheckpointNotFoundError, match="model directory or Hub repo id"):
        Checkpoint.open(model)


def test_an_impossible_reference_is_reported(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    with pytest.raises(CheckpointNotFoundError, match="refers to"):
        Checkpoint.open(tmp_path).related("x" * 5000)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, file names are text")
def test_a_directory_whose_path_is_not_utf_8_needs_a_link(tmp_path: Path) -> None:
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/mod\xe8le"))
    write_llava(directory)
    with pytest.raises(CheckpointError, match="symbolic link"):
        Checkpoint.open(directory)
    link = tmp_path / "link"
    link.symlink_to(directory)
    checkpoint = Checkpoint.open(link)
    assert len(checkpoint.fingerprint) == 64
    assert checkpoint.config["model_type"] == "llava"

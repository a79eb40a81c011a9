from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TOKENIZER, write_json, write_llava
from small_checkpoint import Writer, read, some_tensors, write_checkpoint
from weight_files import (
    FakeHub,
    sharded_safetensors,
    single_bin,
    single_safetensors,
)

from vlcore import Checkpoint
from vlcore.errors import CheckpointError, CheckpointNotFoundError, ConfigError

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


# -- one part of a large checkpoint


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

from __future__ import annotations

import json
import logging
import os
import threading
import weakref
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_json, write_llava
from filelock import FileLock
from qwen_checkpoints import write_qwen
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from waits import TIMEOUT_S
from weight_files import LAYOUTS, read_all, single_bin, single_safetensors

import vlcore
from vlcore import Checkpoint, LanguageModel, TensorError, ViewError
from vlcore.checkpoint.safetensors_writer import SafetensorsWriter
from vlcore.checkpoint.weights import TensorReader
from vlcore.language.text_view.manifest import MANIFEST, ViewManifest
from vlcore.language.text_view.plan import ViewPlan

Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture
def renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """A language model whose every tensor is renamed or cut; its view has several shards."""
    monkeypatch.setattr("vlcore.language.text_view.plan._SHARD_BYTES", 300_000)
    return vlcore.load_language_model(write_qwen(tmp_path / "checkpoint", num_hidden_layers=3))


@pytest.fixture
def fitting(tmp_path: Path) -> LanguageModel:
    """A language model whose view links everything."""
    return vlcore.load_language_model(write_llava(tmp_path / "checkpoint"))


def content_of(view: Path) -> dict[str, Tensor]:
    """Load what the index of a view lists, each from the file that it names."""
    index = json.loads((view / "model.safetensors.index.json").read_text())["weight_map"]
    files = {file: load_file(view / file) for file in set(index.values())}
    return {name: files[file][name] for name, file in index.items()}


def assert_whole(view: Path, language_model: LanguageModel) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(view, dtype=torch.float32)
    expected = language_model.to_transformers("cpu", torch.float32)
    ids = torch.arange(20, 60)[None]
    with torch.inference_mode():
        assert torch.equal(loaded(input_ids=ids).logits, expected(input_ids=ids).logits)
    assert not list(view.parent.glob(f"{view.name}.*"))


class WrittenShards:
    """Records which shards are written, and stops short in the middle of one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[Path] = []
        self.stop_in: int | None = None
        writing = SafetensorsWriter.writing

        def spied(file: SafetensorsWriter, path: Path) -> Any:
            self.paths.append(path)
            return writing(file, path)

        monkeypatch.setattr(SafetensorsWriter, "writing", spied)
        tensors = Checkpoint.tensors

        def stopping(*args: Any, **options: Any) -> Iterator[tuple[str, Tensor]]:
            for number, item in enumerate(tensors(*args, **options)):
                if number and len(self.paths) == self.stop_in:
                    raise KeyboardInterrupt
                yield item

        monkeypatch.setattr(Checkpoint, "tensors", stopping)

    @property
    def names(self) -> list[str]:
        return [path.name.removesuffix(".partial") for path in self.paths]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> WrittenShards:
    return WrittenShards(monkeypatch)


# -- the content of a view


def test_shards_are_written_one_tensor_at_a_time(
    renamed: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    seen: list[weakref.ref[Tensor]] = []
    read = TensorReader.__call__

    def spied(reader: TensorReader, name: str) -> Tensor:
        alive.append(sum(ref() is not None for ref in seen))
        tensor = read(reader, name)
        seen.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(TensorReader, "__call__", spied)
    view = renamed.write_view(tmp_path / "view")
    rewritten = {source.name for source in renamed.tensors.values()} - {"lm_head.weight"}
    assert len(seen) == len(rewritten)
    assert set(alive) == {0}
    assert set(content_of(view)) == set(renamed.tensors)


@pytest.mark.parametrize("store", LAYOUTS)
def test_every_layout_gives_the_same_view(tmp_path: Path, store: Any) -> None:
    directory = write_qwen(tmp_path / "checkpoint")
    stored = read_all(directory)
    (directory / "model.safetensors").unlink()
    store(directory, stored)
    language_model = vlcore.load_language_model(directory)
    assert_whole(language_model.write_view(tmp_path / "view"), language_model)


def test_no_view_is_written_if_a_tensor_is_missing(tmp_path: Path) -> None:
    stored = read_all(write_llava(tmp_path / "checkpoint"))
    del stored["model.layers.1.mlp.up_proj.weight"]
    single_safetensors(tmp_path / "checkpoint", stored)
    language_model = vlcore.load_language_model(tmp_path / "checkpoint")
    with pytest.raises(TensorError, match=r"lacks 1 .*model\.layers\.1\.mlp\.up_proj\.weight"):
        language_model.write_view(tmp_path / "view")
    assert not (tmp_path / "view").exists()


def test_a_wrong_shape_is_reported_before_anything_is_written(
    tmp_path: Path, written: WrittenShards
) -> None:
    stored = read_all(write_qwen(tmp_path / "checkpoint"))
    stored["transformer.h.0.attn.c_attn.weight"] = torch.zeros(400, 128)
    single_safetensors(tmp_path / "checkpoint", stored)
    language_model = vlcore.load_language_model(tmp_path / "checkpoint")
    with pytest.raises(TensorError, match=r"c_attn\.weight gives \[144, 128\] where .*\[128, 128"):
        language_model.write_view(tmp_path / "view")
    assert written.names == []


def test_the_manifest_states_why_the_context_is_limited(tmp_path: Path) -> None:
    language_model = vlcore.load_language_model(write_qwen(tmp_path / "checkpoint"))
    view = language_model.write_view(tmp_path / "view")
    manifest = ViewManifest.read(view)
    assert manifest is not None
    assert manifest.model == str(tmp_path / "checkpoint")
    assert "the context is limited, because beyond seq_length 2048" in manifest.note
    assert json.loads((view / "config.json").read_text())["max_position_embeddings"] == 2048


def test_a_progress_bar_is_shown_on_request(
    renamed: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed.write_view(tmp_path / "quiet")
    assert capsys.readouterr().err == ""
    renamed.write_view(tmp_path / "view", progress=True)
    total = len(renamed.tensors) - 1  # one keeps its name, and is linked
    assert f"writing the text view: 100%|██████████| {total}/{total}" in capsys.readouterr().err


# -- existing and incomplete views


@pytest.mark.parametrize("kind", ["renamed", "fitting"])
def test_an_existing_view_is_left_as_it_is(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    language_model: LanguageModel = request.getfixturevalue(kind)
    view = language_model.write_view(tmp_path / "view")
    before = {path.name: path.lstat().st_mtime_ns for path in view.iterdir()}
    again = vlcore.load_language_model(language_model.checkpoint.directory)
    assert again.write_view(tmp_path / "view") == view
    assert {path.name: path.lstat().st_mtime_ns for path in view.iterdir()} == before


def test_an_interrupted_write_is_resumed(
    renamed: LanguageModel, tmp_path: Path, written: WrittenShards
) -> None:
    written.stop_in = 3
    with pytest.raises(KeyboardInterrupt):
        renamed.write_view(tmp_path / "view")
    assert written.names == [f"copied-0000{number}.safetensors" for number in (1, 2, 3)]
    assert not (tmp_path / "view").exists()
    kept = sorted(path.name for path in (tmp_path / "view.partial").glob("*.safetensors"))
    assert kept == written.names[:2]

    written.stop_in, written.paths = None, []
    view = renamed.write_view(tmp_path / "view")
    num_shards = len(ViewPlan(renamed).shards)
    assert num_shards > 3
    assert written.names == [f"copied-{n:05}.safetensors" for n in range(3, num_shards + 1)]
    assert_whole(view, renamed)


def test_a_finished_shard_that_was_damaged_is_written_again(
    renamed: LanguageModel, tmp_path: Path, written: WrittenShards
) -> None:
    written.stop_in = 3
    with pytest.raises(KeyboardInterrupt):
        renamed.write_view(tmp_path / "view")
    shard = tmp_path / "view.partial" / "copied-00001.safetensors"
    before = shard.stat()
    with shard.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    written.stop_in, written.paths = None, []
    assert_whole(renamed.write_view(tmp_path / "view"), renamed)
    assert "copied-00001.safetensors" in written.names
    assert "copied-00002.safetensors" not in written.names


def test_leftovers_of_an_interrupted_write_of_other_files_are_removed(
    renamed: LanguageModel, tmp_path: Path, written: WrittenShards
) -> None:
    written.stop_in = 3
    with pytest.raises(KeyboardInterrupt):
        renamed.write_view(tmp_path / "view")
    written.stop_in, written.paths = None, []
    write_qwen(tmp_path / "checkpoint", seed=1)
    changed = vlcore.load_language_model(tmp_path / "checkpoint")
    assert_whole(changed.write_view(tmp_path / "view"), changed)
    assert written.names[0] == "copied-00001.safetensors"


def test_the_error_of_a_failed_write_says_what_is_kept(
    renamed: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "tensors", full)
        with pytest.raises(ViewError, match=r"No space left.*are kept in .*part"):
            renamed.write_view(tmp_path / "view")
    assert_whole(renamed.write_view(tmp_path / "view"), renamed)


def test_one_of_several_concurrent_writers_writes_and_the_others_wait(
    renamed: LanguageModel, tmp_path: Path, written: WrittenShards
) -> None:
    barrier = threading.Barrier(4)
    views: list[Path] = []

    def write() -> None:
        own = vlcore.load_language_model(renamed.checkpoint.directory)
        barrier.wait()
        views.append(own.write_view(tmp_path / "view"))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert views == [tmp_path / "view"] * 4
    assert len(written.names) == len(set(written.names)) == len(ViewPlan(renamed).shards)
    assert_whole(views[0], renamed)


def test_waiting_for_another_process_is_reported(
    fitting: LanguageModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_held, has_warned = threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(tmp_path / "view.lock"):
            is_held.set()
            has_warned.wait(TIMEOUT_S)

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    warn = logging.Logger.warning

    def warned(*args: Any, **options: Any) -> None:
        warn(*args, **options)
        has_warned.set()

    monkeypatch.setattr(logging.Logger, "warning", warned)
    view = fitting.write_view(tmp_path / "view")
    thread.join()
    assert f"another process writes {view}: waiting for it" in caplog.messages
    assert_whole(view, fitting)


# -- errors


def test_too_little_disk_space_is_reported_before_anything_is_written(
    renamed: LanguageModel, tmp_path: Path, written: WrittenShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(shard.file.num_bytes for shard in ViewPlan(renamed).shards)
    for free, fits in ((needed - 1, False), (needed, True)):
        usage = Usage(2 * needed, 0, free)
        monkeypatch.setattr(
            "vlcore.language.text_view.writer.shutil.disk_usage", lambda _, usage=usage: usage
        )
        if fits:
            assert_whole(renamed.write_view(tmp_path / "view"), renamed)
            continue
        with pytest.raises(
            ViewError,
            match=rf"needs 0\.00 GiB in {tmp_path}, where 0\.00 GiB are free: free disk space",
        ):
            renamed.write_view(tmp_path / "view")
        assert written.names == []


def test_completed_files_need_no_further_disk_space(
    renamed: LanguageModel, tmp_path: Path, written: WrittenShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    written.stop_in = 3
    with pytest.raises(KeyboardInterrupt):
        renamed.write_view(tmp_path / "view")
    written.stop_in = None
    needed = sum(shard.file.num_bytes for shard in ViewPlan(renamed).shards[2:])
    monkeypatch.setattr(
        "vlcore.language.text_view.writer.shutil.disk_usage", lambda _: Usage(0, 0, needed)
    )
    assert_whole(renamed.write_view(tmp_path / "view"), renamed)


def test_a_view_of_links_needs_no_disk_space(
    fitting: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vlcore.language.text_view.writer.shutil.disk_usage", lambda _: Usage(1, 1, 0)
    )
    assert_whole(fitting.write_view(tmp_path / "view"), fitting)


def test_a_directory_that_cannot_be_written_is_reported(
    fitting: LanguageModel, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ViewError, match=r"of .*checkpoint cannot be written to .*file/deep/view: "):
        fitting.write_view(tmp_path / "file" / "deep" / "view")


def test_a_view_of_other_files_is_not_overwritten(fitting: LanguageModel, tmp_path: Path) -> None:
    view = fitting.write_view(tmp_path / "view")
    other = vlcore.load_language_model(write_llava(tmp_path / "other", seed=1))
    with pytest.raises(ViewError, match=rf"not empty: it holds a view of {tmp_path}/checkpoint,"):
        other.write_view(view)
    assert_whole(view, fitting)


def test_something_else_under_the_partial_name_is_left_alone(
    fitting: LanguageModel, tmp_path: Path
) -> None:
    (tmp_path / "view.partial").mkdir()
    (tmp_path / "view.partial" / "notes.md").write_text("mine")
    with pytest.raises(ViewError, match=r"view\.partial is the directory .* something else"):
        fitting.write_view(tmp_path / "view")
    assert (tmp_path / "view.partial" / "notes.md").read_text() == "mine"


def test_an_incomplete_view_is_not_used(
    renamed: LanguageModel, tmp_path: Path, written: WrittenShards
) -> None:
    written.stop_in = 3
    with pytest.raises(KeyboardInterrupt):
        renamed.write_view(tmp_path / "view")
    with pytest.raises(ViewError, match=r"view\.partial is not empty"):
        renamed.write_view(tmp_path / "view.partial")


def test_the_error_for_a_damaged_view_says_how_to_remove_it(
    renamed: LanguageModel, tmp_path: Path
) -> None:
    view = renamed.write_view(tmp_path / "my view")
    (view / "copied-00002.safetensors").write_bytes(b"short")
    with pytest.raises(
        ViewError, match=r"is damaged: copied-00002\.safetensors has 5 bytes .*`rm -r '.*/my view'`"
    ):
        renamed.write_view(view)


def test_files_of_a_write_that_was_interrupted_at_its_start_are_removed(
    fitting: LanguageModel, tmp_path: Path
) -> None:
    (tmp_path / "view.partial").mkdir()
    (tmp_path / "view.partial" / f"{MANIFEST}.partial").write_text("{")
    assert_whole(fitting.write_view(tmp_path / "view"), fitting)


# -- the key


def key_of(directory: Path) -> str:
    return ViewPlan(vlcore.load_language_model(directory)).key


def test_the_key_is_stable_while_the_files_are_unchanged(tmp_path: Path) -> None:
    directory = write_llava(tmp_path)
    assert key_of(directory) == key_of(directory)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer_config.json"])
def test_the_key_changes_with_every_relevant_file(tmp_path: Path, file: str) -> None:
    before = key_of(write_llava(tmp_path))
    os.utime(tmp_path / file, ns=(0, 0))
    assert key_of(tmp_path) != before


def test_the_key_changes_with_a_new_tokenizer_file(tmp_path: Path) -> None:
    before = key_of(write_llava(tmp_path))
    write_json(tmp_path / "added_tokens.json", {})
    assert key_of(tmp_path) != before


def test_the_key_changes_with_the_sources_of_the_tensors(fitting: LanguageModel) -> None:
    name = "model.norm.weight"
    tensors = fitting.tensors | {name: vlcore.TensorSource(name, slice(0, 8))}
    other = LanguageModel(fitting.checkpoint, fitting.config, tensors)
    assert ViewPlan(other).key != ViewPlan(fitting).key


def test_planning_opens_no_weights_of_an_existing_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_qwen(tmp_path / "checkpoint")
    single_bin(directory, read_all(directory))
    (directory / "model.safetensors").unlink()
    language_model = vlcore.load_language_model(directory)
    view = language_model.write_view(tmp_path / "view")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were opened")

    monkeypatch.setattr("vlcore.checkpoint.weight_files.open_weights", refuse)
    assert language_model.write_view(view) == view

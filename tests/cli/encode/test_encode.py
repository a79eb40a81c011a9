from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import write_llava
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import vlcore
from vlcore.cli import app


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("encode") / "checkpoint")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for name, colour in (("red.png", "red"), ("blue.JPG", "blue"), ("more/red_too.png", "red")):
        Image.new("RGB", (40, 30), colour).save(folder / name)
    (folder / "notes.txt").write_text("no image, and not tried")
    return folder


def encode(checkpoint: Path, out: Path, *arguments: str | Path) -> Result:
    """Run the command, in float32 unless the arguments name another dtype."""
    command = ["encode", str(checkpoint), "--dtype", "float32", "--out", str(out)]
    command += map(str, arguments)
    return CliRunner().invoke(app, command)


def rows_of(checkpoint: Path, paths: list[Path]) -> list[torch.Tensor]:
    async def body() -> list[torch.Tensor]:
        model = vlcore.load_vision_model(checkpoint, dtype=torch.float32)
        async with vlcore.ImageEncoder(model) as encoder:
            return [image.rows for image in await encoder.encode(paths)]

    return asyncio.run(body())


def test_images_of_a_directory_and_named_images_are_encoded(checkpoint: Path, folder: Path) -> None:
    out, named = folder / "rows.safetensors", folder / "green.png"
    Image.new("RGB", (30, 40), "green").save(named)
    result = encode(checkpoint, out, named, folder, folder / "red.png")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out} contains the embeddings of 4 image(s)\n"
    assert "3 encoded" in result.stderr  # two are the same image
    rows = load_file(out)
    images = [folder / n for n in ("green.png", "red.png", "blue.JPG", "more/red_too.png")]
    assert set(rows) == set(map(str, images))
    for path, expected in zip(images, rows_of(checkpoint, images), strict=True):
        torch.testing.assert_close(rows[str(path)], expected, rtol=1e-5, atol=1e-5)


def test_a_copy_on_each_device(checkpoint: Path, folder: Path) -> None:
    alone, out = folder / "alone.safetensors", folder / "rows.safetensors"
    assert encode(checkpoint, alone, folder, "--device", "cpu").exit_code == 0
    result = encode(checkpoint, out, folder, "--device", "cpu", "--device", "cpu")
    assert result.exit_code == 0, result.output
    rows, expected = load_file(out), load_file(alone)
    assert rows.keys() == expected.keys()
    for name, embeddings in rows.items():
        torch.testing.assert_close(embeddings, expected[name], rtol=1e-5, atol=1e-5)


def test_bad_files_are_listed_at_the_end_and_the_others_are_encoded(
    checkpoint: Path, folder: Path
) -> None:
    out, broken, absent = folder / "rows.safetensors", folder / "a.png", folder / "absent.png"
    broken.write_bytes(b"no image")
    result = encode(checkpoint, out, absent, folder)
    assert result.exit_code == 1
    assert len(load_file(out)) == 3
    *_, first, second = result.stderr.splitlines()
    assert first.startswith(f"not encoded: {absent}: there is no file")
    assert second.startswith(f"not encoded: {broken}: image 1 of 1 (8 bytes) is not an image")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, file names are text")
def test_a_file_name_that_is_not_utf_8_costs_that_file_only(checkpoint: Path, folder: Path) -> None:
    out = folder / "rows.safetensors"
    broken = folder / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (40, 30), "red").save(broken)
    result = encode(checkpoint, out, folder, broken)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert len(load_file(out)) == 3
    last = result.stderr.splitlines()[-1]
    assert "caf\\udce9.png: the name is not valid Unicode" in last


def test_a_later_run_encodes_what_is_new_or_changed(checkpoint: Path, folder: Path) -> None:
    out = folder / "rows.safetensors"
    encode(checkpoint, out, folder)
    before = load_file(out)
    again = encode(checkpoint, out, folder)
    assert "[0 image(s), 0 encoded" in again.stderr
    assert load_file(out).keys() == before.keys()
    Image.new("RGB", (40, 30), "yellow").save(folder / "red.png")
    Image.new("RGB", (40, 30), "white").save(folder / "white.png")
    third = encode(checkpoint, out, folder)
    assert "[2 image(s), 2 encoded" in third.stderr
    after = load_file(out)
    assert after.keys() == {*before, str(folder / "white.png")}
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == [str(folder / "red.png")]


def test_images_shrunk_on_load_do_not_share_embeddings_with_whole_ones(
    checkpoint: Path, folder: Path
) -> None:
    out, photo = folder / "rows.safetensors", folder / "photo.jpg"
    Image.effect_mandelbrot((800, 600), (-2, -1, 1, 1), 50).save(photo)
    encode(checkpoint, out, photo)
    whole = load_file(out)[str(photo)]
    for _ in range(2):
        again = encode(checkpoint, out, photo, "--shrink-on-load")
    assert "[0 image(s), 0 encoded" in again.stderr
    small = load_file(out)[str(photo)]
    assert not torch.equal(small, whole)
    assert (small - whole).abs().mean() < whole.abs().mean() / 10
    encode(checkpoint, out, photo)
    assert torch.equal(load_file(out)[str(photo)], whole)


def test_rows_of_another_model_are_not_mixed_in(
    checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    out = folder / "rows.safetensors"
    encode(checkpoint, out, folder)
    held = out.read_bytes()
    result = encode(write_llava(tmp_path / "other", seed=1), out, folder)
    assert "contains embeddings of another model or dtype" in str(result.exception)
    assert "another model" in str(encode(checkpoint, out, folder, "--dtype", "float16").exception)
    assert out.read_bytes() == held


def test_a_file_of_something_else_is_left_alone(checkpoint: Path, folder: Path) -> None:
    out = folder / "rows.safetensors"
    out.write_text("something else")
    result = encode(checkpoint, out, folder)
    assert isinstance(result.exception, vlcore.OptionError)
    assert "is not a file of image embeddings" in str(result.exception)
    assert out.read_text() == "something else"


def test_bad_arguments_are_errors_before_the_model_loads(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    nowhere = encode(tmp_path, tmp_path / "nowhere" / "rows.safetensors", tmp_path)
    assert "--out expects a file" in str(nowhere.exception)
    invalid = encode(tmp_path, tmp_path / os.fsdecode(b"rows \xff.safetensors"), tmp_path)
    assert "--out expects a valid Unicode file name" in str(invalid.exception)
    empty = encode(tmp_path, tmp_path / "rows.safetensors", tmp_path / "empty")
    assert f"no images found in {tmp_path / 'empty'}" in str(empty.exception)


def test_finished_images_are_kept_after_an_interrupt(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder / "rows.safetensors"
    encode_one = vlcore.ImageEncoder.encode

    async def interrupted(self: vlcore.ImageEncoder, images: list[bytes]) -> object:
        if self.stats().num_encoded == 1:
            raise KeyboardInterrupt
        return await encode_one(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["vlcore.cli.encode"], "_MAX_FILES_IN_MEMORY", 1)
        patch.setattr(vlcore.ImageEncoder, "encode", interrupted)
        assert encode(checkpoint, out, folder).exit_code != 0
    assert len(load_file(out)) == 1
    assert "[2 image(s)" in encode(checkpoint, out, folder).stderr


def test_patterns_find_images(checkpoint: Path, folder: Path) -> None:
    out = folder / "rows.safetensors"
    result = encode(checkpoint, out, folder / "r*.png", folder / "absent*.png")
    assert list(load_file(out)) == [str(folder / "red.png")]
    assert result.stderr.splitlines()[-1].startswith(f"not encoded: {folder}/absent*.png: there is")


def test_options_of_a_cluster_are_not_ignored_without_one(checkpoint: Path, folder: Path) -> None:
    out = folder / "rows"
    result = encode(checkpoint, out, folder, "--encoders", "2", "--format", "parquet")
    assert "--format, --encoders can only be used with --ray" in str(result.exception)
    result = encode(checkpoint, out, folder, "--ray", "--device", "cpu", "--device", "cuda")
    assert "--device can only be stated once with --ray" in str(result.exception)


def test_without_ray_the_error_names_the_extra(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = encode(checkpoint, folder / "rows", folder, "--ray")
    assert isinstance(result.exception, vlcore.EngineUnavailableError)
    assert "pip install 'vlcore[ray]'" in str(result.exception)

"""`vlcore encode --ray`, on a Ray of two CPUs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from checkpoints import write_llava
from offline_filesystems import DeadlyFileSystem, FullFileSystem
from PIL import Image
from pyarrow import fs, parquet
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from vlcore.cli import app
from vlcore.cluster.offline.job import FAILURES, EncodingJob, Report
from vlcore.cluster.offline.resources import Replicas
from vlcore.cluster.offline.settings import EncoderSettings
from vlcore.cluster.offline.shards import ShardDirectory
from vlcore.cluster.offline.sources import Sources, find_sources
from vlcore.errors import EngineError, OptionError

# Ray Data warns of settings that it sets itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    imports = {"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}}
    ray.init(
        address="local",  # another one may run on this machine
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env=imports,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("offline") / "checkpoint")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    colours = {"red.png": "red", "blue.JPG": "blue", "more/red_too.png": "red", "w.png": "white"}
    for name, colour in colours.items():
        Image.new("RGB", (40, 30), colour).save(folder / name)
    (folder / "notes.txt").write_text("no image, and not tried")
    return folder


def encode(checkpoint: Path, out: Path, *arguments: str | Path) -> Result:
    """Run the command. One image in a forward pass always gives the same bits."""
    command = ["encode", str(checkpoint), "--out", str(out), "--max-batch-size", "1"]
    if "--ray" in arguments:
        command += ["--encoders", "1", "--encoder-cpus", "1"]
    return CliRunner().invoke(app, [*command, *map(str, arguments)])


def stored(directory: Path) -> dict[str, torch.Tensor]:
    """Read the shards as the documentation shows; each image must be there once."""
    images: list[tuple[str, torch.Tensor]] = []
    for path in directory.glob("embeddings-*.safetensors"):
        images += load_file(path).items()
    for path in directory.glob("embeddings-*.parquet"):
        table = parquet.read_table(path)
        dtype = getattr(torch, table.schema.metadata[b"dtype"].decode())
        width = int(table.schema.metadata[b"row_width"])
        images += [
            (name.as_py(), torch.frombuffer(bytearray(rows.as_py()), dtype=dtype).view(-1, width))
            for name, rows in zip(table["name"], table["rows"], strict=True)
        ]
    assert len(dict(images)) == len(images)
    return dict(images)


def assert_equal(rows: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert rows.keys() == expected.keys()
    assert all(torch.equal(rows[name], expected[name]) for name in rows)


def failures(directory: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (directory / FAILURES).read_text().splitlines()]


def test_the_command_does_what_it_does_on_one_machine(
    checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / "bad.png").write_bytes(b"no image")
    invalid = folder / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (40, 30), "red").save(invalid)
    arguments: list[str | Path] = [tmp_path / "absent.png", folder, folder / "*.png"]
    arguments += [f"file://{folder}/w.png", "--dtype", "bfloat16"]
    here = encode(checkpoint, tmp_path / "rows.safetensors", *arguments)
    out = tmp_path / "out"
    result = encode(checkpoint, out, *arguments, "--ray", "--images-per-shard", "3")
    assert (result.exit_code, here.exit_code) == (1, 1)
    assert isinstance(result.exception, SystemExit), result.exc_info
    assert result.stdout == f"{out} contains the embeddings of 5 image(s)\n"
    listed = [line for line in here.stderr.splitlines() if line.startswith("not encoded:")]
    assert len(listed) == 3
    *same, unnamed = result.stderr.splitlines()[-3:]
    assert same == listed[:2]
    assert unnamed.startswith(
        f"not encoded: {folder}/caf\\udce9.png: the name is not valid Unicode"
    )
    assert_equal(stored(out), load_file(tmp_path / "rows.safetensors"))
    in_file = [f"not encoded: {one['name']}: {one['error']}" for one in failures(out)]
    assert in_file[:2] == listed[:2]
    assert len(in_file) == 3


def test_a_later_run_encodes_what_is_new_or_changed(
    checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    out, rows = tmp_path / "out", tmp_path / "rows.safetensors"
    options = ["--ray", "--format", "safetensors", "--dtype", "float32", "--images-per-shard", "2"]
    first = encode(checkpoint, out, folder, *options)
    assert first.exit_code == 0, first.exc_info
    assert "[4 image(s), 4 encoded]" in first.stderr
    before = stored(out)
    Image.new("RGB", (40, 30), "yellow").save(folder / "red.png")
    Image.new("RGB", (40, 30), "green").save(folder / "green.png")
    again = encode(checkpoint, out, folder, *options)
    assert "[5 image(s), 2 encoded, 3 encoded before]" in again.stderr
    assert again.stdout == f"{out} contains the embeddings of 5 image(s)\n"
    after = stored(out)
    encode(checkpoint, rows, folder, "--dtype", "float32")
    assert_equal(after, load_file(rows))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == [str(folder / "red.png")]
    assert failures(out) == []


def run(
    checkpoint: Path, sources: Sources, directory: ShardDirectory, **options: Any
) -> tuple[EncodingJob, Report]:
    settings = EncoderSettings(str(checkpoint), device="cpu", dtype="float32", max_batch_size=1)
    job = EncodingJob(settings, directory, Replicas(1, "cpu", 1, 0), options.get("group", 8))
    return job, job.run(sources, options.get("advance", lambda: None))


def test_a_file_that_ends_its_process_costs_itself(
    checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    for name in ("deadly.png", "once.png"):
        Image.new("RGB", (40, 30), "black").save(folder / name)
    sources = find_sources([f"file://{folder}"])
    sources.filesystems = [fs.PyFileSystem(fs.FSSpecHandler(DeadlyFileSystem()))]
    out = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    num_steps = []
    _, report = run(
        checkpoint,
        sources,
        ShardDirectory(out, "out", "parquet", "model"),
        advance=lambda: num_steps.append(1),
    )
    ((name, error),) = report.failures.items()
    assert name == f"file://{folder}/deadly.png"
    assert "the process died 2 times when it encoded this image alone (" in error
    assert (report.num_images, report.num_encoded, report.num_total) == (6, 5, 5)
    assert len(num_steps) == 6
    expected = {
        f"file://{path}": rows
        for path, rows in here(checkpoint, tmp_path, folder).items()
        if not path.endswith("deadly.png")
    }
    assert_equal(stored(tmp_path / "out"), expected)
    assert [one["name"] for one in failures(tmp_path / "out")] == [name]


def here(checkpoint: Path, tmp_path: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Return the rows of the command without Ray."""
    rows = tmp_path / "here.safetensors"
    encode(checkpoint, rows, folder, "--dtype", "float32")
    return load_file(rows)


def test_finished_shards_are_kept_after_an_interrupt(
    checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    sources = find_sources([str(folder)])
    directory = ShardDirectory(fs.LocalFileSystem(), str(tmp_path / "out"), "parquet", "model")
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, sources, directory, group=1, advance=interrupt)
    num_finished = len(stored(tmp_path / "out"))
    assert num_finished >= 1
    _, report = run(checkpoint, sources, directory, group=1)
    assert report.num_known >= num_finished
    assert report.num_known + report.num_encoded == 4
    assert_equal(stored(tmp_path / "out"), here(checkpoint, tmp_path, folder))


def test_what_concerns_all_images_ends_the_job(
    checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    sources = find_sources([str(folder)])
    full = fs.PyFileSystem(fs.FSSpecHandler(FullFileSystem()))
    with pytest.raises(OptionError, match=r"cannot be written: .*no space left on device"):
        run(checkpoint, sources, ShardDirectory(full, str(tmp_path / "out"), "parquet", "model"))
    broken = write_llava(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    directory = ShardDirectory(fs.LocalFileSystem(), str(tmp_path / "none"), "parquet", "model")
    with pytest.raises(EngineError, match=r"the encoders cannot run: .*model\.safetensors"):
        run(broken, sources, directory)

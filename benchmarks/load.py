"""How fast the vision encoder is loaded from a whole checkpoint, and what that costs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from _llava import CLIP, LLAMA, NUM_SHARDS, STORED_DTYPE, TINY_CLIP, TINY_LLAMA, write_checkpoint
from measure import interleave, markdown_table, progress, ratios, spread

# LLaVA 1.5 takes the output of the last layer but one.
UNUSED = ("post_layernorm.", "encoder.layers.23.")


@dataclass(frozen=True)
class Load:
    """One way to load one checkpoint, from disk or out of the page cache."""

    way: str
    storage: str
    dtype: str
    cold: bool


@dataclass(frozen=True)
class Cost:
    """What a load took."""

    seconds: float
    peak_bytes: int
    disk_bytes: int
    vision_bytes: int
    checksum: float


FIRST_SCENE = ("safetensors", STORED_DTYPE)
RIVALS = ("vlcore", "the guide's way")  # all that the other scenes compare
SCENES = {
    "As stored: float16 in safetensors": FIRST_SCENE,
    "Converted to float32": ("safetensors", "float32"),
    "Converted to bfloat16": ("safetensors", "bfloat16"),
    "As stored: float16 in `.bin` shards": ("bin", "float16"),
}


# -- the contenders: each loads the vision encoder and the projector


def load_vlcore(directory: Path, dtype: Any) -> list[Any]:
    """Load the vision encoder."""
    from torch import nn

    import vlcore

    model = vlcore.load_vision_model(directory, "cpu", dtype)
    return [value for value in vars(model).values() if isinstance(value, nn.Module)]


def load_guide(directory: Path, dtype: Any) -> list[Any]:
    """Build the whole model empty, drop its language model, and load every shard into the rest."""
    import torch
    from accelerate import init_empty_weights
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForImageTextToText

    with init_empty_weights():
        config = AutoConfig.from_pretrained(directory)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
        del model.lm_head
        del model.model.language_model
    model.to_empty(device="cpu")
    (index,) = directory.glob("*.index.json")
    weight_map = json.loads(index.read_text())["weight_map"]
    for filename in sorted({weight_map[name] for name in model.state_dict()}):
        path = directory / filename
        stored = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, weights_only=True)
        )
        model.load_state_dict(stored, strict=False)
    return [model.model.vision_tower.eval(), model.model.multi_modal_projector.eval()]


def load_whole(directory: Path, dtype: Any) -> list[Any]:
    """Build the whole model, and load every shard into it."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(directory)
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    for path in sorted(directory.glob("*.safetensors")):
        model.load_state_dict(load_file(path), strict=False)
    return [model.model.vision_tower.eval(), model.model.multi_modal_projector.eval()]


def load_accelerate(directory: Path, dtype: Any) -> list[Any]:
    """Build the whole model empty and dispatch the whole checkpoint."""
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(directory)
    with init_empty_weights():
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    model = load_checkpoint_and_dispatch(model, directory, device_map={"": "cpu"}, dtype=dtype)
    return [model.model.vision_tower.eval(), model.model.multi_modal_projector.eval()]


def load_transformers(directory: Path, dtype: Any) -> list[Any]:
    """Load the whole model."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=dtype)
    return [model.model.vision_tower, model.model.multi_modal_projector]


WAYS: dict[str, Callable[[Path, Any], list[Any]]] = {
    "vlcore": load_vlcore,
    "the whole model": load_whole,
    "the guide's way": load_guide,
    "accelerate": load_accelerate,
    "transformers": load_transformers,
}


# -- one load


def measure(load: Load, directory: Path) -> Cost:
    """Load, and read a byte of each page of each weight, since a mapped one is not read before."""
    import torch

    dtype = getattr(torch, load.dtype)
    WAYS[load.way](directory / f"tiny-{load.storage}", dtype)  # imports what a load imports
    path = directory / load.storage
    (drop_from_page_cache if load.cold else read_into_page_cache)(path)
    disk, resident = disk_reads(), memory("VmRSS")
    started = time.perf_counter()
    weights = [
        tensor
        for module in WAYS[load.way](path, dtype)
        for key, tensor in module.state_dict().items()
        if not key.startswith(UNUSED)
    ]
    for weight in weights:
        weight.view(torch.uint8).flatten()[::4096].sum().item()
    seconds = time.perf_counter() - started
    return Cost(
        seconds=seconds,
        peak_bytes=memory("VmHWM") - resident,
        disk_bytes=disk_reads() - disk,
        vision_bytes=sum(weight.nbytes for weight in weights),
        checksum=sum(weight.double().abs().sum().item() for weight in weights),
    )


def measure_in_fresh_process(load: Load, directory: Path) -> Cost:
    """Start an interpreter for one load."""
    finished = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(asdict(load)), "--directory", directory],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    if finished.returncode:
        raise RuntimeError(f"{load} failed:\n{finished.stderr}")
    return Cost(**json.loads(finished.stdout.splitlines()[-1]))


def drop_from_page_cache(directory: Path) -> None:
    """Have the next read of every file come from the disk."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_into_page_cache(directory: Path) -> None:
    """Have the next read of every file come from memory."""
    for path in directory.iterdir():
        with path.open("rb", buffering=0) as file:
            buffer = bytearray(2**24)
            while file.readinto(buffer):
                pass


def disk_reads() -> int:
    """Bytes that the disk has read for this process, also for mapped pages and ahead of need."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def memory(field: str) -> int:
    """Bytes that this process holds (``VmRSS``) or has held at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) * 1024


# -- the report


def report(costs: Mapping[Load, list[Cost]], rounds: int) -> str:
    """Write the tables."""
    stored = next(iter(costs.values()))[0].vision_bytes / 1e9
    lines = [
        "## Loading the vision encoder",
        "",
        f"A random llava-hf checkpoint of {NUM_SHARDS} shards: a vision encoder of {stored:.2f} GB "
        "(CLIP ViT-L/14-336 without what LLaVA 1.5 leaves out of it, and the projector), spread "
        "over all shards next to a language model seven times as large. vlcore's "
        "`load_vision_model` against building the whole model and loading every shard; building "
        "it empty, dropping its language model and loading every shard that holds a tensor of the "
        "rest (the way of the guide to lmdeploy's vision models); accelerate's "
        "`load_checkpoint_and_dispatch`; and transformers' `from_pretrained`, to a CPU. All give "
        "the same weights; a sum over them is compared.",
        "",
        "Every load runs in a process of its own, which has loaded a tiny checkpoint before, so "
        "that "
        "no import is timed. The clock stops when a byte of every page of the vision encoder has "
        "been read. Cold: the files were written through and dropped from the page cache "
        "(`POSIX_FADV_DONTNEED`); *disk* is what the kernel then read for the process "
        "(`read_bytes`, with what it reads ahead), by which the drop is verified. Warm: every "
        "file was read just before. *Peak* is the greatest resident memory (`VmHWM`, mapped pages "
        "of files included) less the resident memory before the load. *Disk* is in units of the "
        "vision encoder as stored, *peak* in units of the vision encoder in the dtype asked for. "
        f"Median (min..max) of {rounds} round(s); *times vlcore* is taken within each round.",
        "",
        "safetensors files are memory-mapped, so all ways but the whole model read little of the "
        "language model there; `.bin` shards, the format of LLaVA 1.5 and Qwen-VL, are read whole "
        "by the guide's way.",
    ]
    for title, (storage, dtype) in SCENES.items():
        ways = [load.way for load in costs if (load.storage, load.dtype) == (storage, dtype)]
        ways = list(dict.fromkeys(ways))
        if ways:
            rows = [_row(costs, way, storage, dtype) for way in ways]
            headers = ["way", "cold, s", "times vlcore", "disk", "warm, s", "times vlcore", "peak"]
            lines += ["", f"### {title}", "", markdown_table(headers, rows)]
    return "\n".join(lines)


def _row(costs: Mapping[Load, list[Cost]], way: str, storage: str, dtype: str) -> list[str]:
    row = [way]
    peaks: list[float] = []
    for cold in (True, False):
        own = costs.get(Load(way, storage, dtype, cold))
        if own is None:
            row += ["", "", ""] if cold else ["", ""]
            continue
        base = costs[Load("vlcore", storage, dtype, cold)]
        seconds = [cost.seconds for cost in own]
        row += [spread(seconds), spread(ratios(seconds, [cost.seconds for cost in base]), 1)]
        if cold:
            stored_bytes = [cost.vision_bytes * 2 / _width(dtype) for cost in own]
            row.append(spread(ratios([cost.disk_bytes for cost in own], stored_bytes), 3))
        peaks += [cost.peak_bytes / cost.vision_bytes for cost in own]
    return [*row, spread(peaks)]


def _width(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def check(costs: Mapping[Load, list[Cost]], *, on_disk: bool) -> None:
    """Make sure that all loaded the same, and that what was to be cold was."""
    for load, own in costs.items():
        base = costs[Load("vlcore", load.storage, load.dtype, load.cold)]
        if {cost.checksum for cost in own} != {cost.checksum for cost in base}:
            raise RuntimeError(f"{load} gave other weights than vlcore")
        least = min(cost.disk_bytes / (cost.vision_bytes * 2 / _width(load.dtype)) for cost in own)
        if load.cold and on_disk and least < 0.99:
            raise RuntimeError(f"{load} was not cold: is the temporary directory on a disk?")


def main() -> None:
    """Print costs as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=LLAMA["num_hidden_layers"])
    parser.add_argument("--quick", action="store_true", help="one round, tiny, in one process")
    parser.add_argument("--directory", type=Path, help="where the checkpoints are written")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asdict(measure(Load(**json.loads(options.one)), options.directory))))
        return
    rounds = 1 if options.quick else options.rounds
    loads = [
        Load(way, storage, dtype, cold)
        for storage, dtype in SCENES.values()
        for way in (WAYS if (storage, dtype) == FIRST_SCENE else RIVALS)
        for cold in (True, False)
        if not cold or dtype == STORED_DTYPE
    ]
    clip, llama = CLIP, LLAMA | {"num_hidden_layers": options.layers}
    if options.quick:
        clip, llama = TINY_CLIP, TINY_LLAMA
    with tempfile.TemporaryDirectory(dir=options.directory) as temporary:
        directory = Path(temporary)
        for storage in ("safetensors", "bin"):
            progress(f"writing the checkpoint in {storage}")
            write_checkpoint(directory / f"tiny-{storage}", TINY_CLIP, TINY_LLAMA, storage)
            write_checkpoint(directory / storage, clip, llama, storage)
        run = measure if options.quick else measure_in_fresh_process
        costs = interleave(rounds, {load: partial(run, load, directory) for load in loads})
    check(costs, on_disk=not options.quick)
    print(report(costs, rounds))


if __name__ == "__main__":
    main()

"""How long `import vlcore` and `vlcore plugins` take, as a share of `import torch`.

The plugins of the last row are made up: 200 distributions, each with metadata as long as usual.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from measure import interleave, markdown_table, ratios, spread

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import vlcore": ["-c", "import vlcore"],
    "vlcore plugins": ["-m", "vlcore", "plugins"],
}


NUM_PLUGINS = 200
README = "Some model for vlcore, with a table of its checkpoints and an example.\n" * 60


def milliseconds(arguments: list[str], path: str = "") -> float:
    """Time one fresh interpreter, with distributions in a further folder."""
    environment = os.environ | {"PYTHONPATH": path} if path else dict(os.environ)
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment
    )
    return (time.perf_counter() - started) * 1000


def install_plugins(folder: Path) -> None:
    """Write the metadata of many plugins, which is all that listing looks at."""
    for number in range(NUM_PLUGINS):
        info = folder / f"vl_plugin_made_up_{number}-1.0.dist-info"
        info.mkdir()
        metadata = [
            "Metadata-Version: 2.4",
            f"Name: vl-plugin-made-up-{number}",
            "Version: 1.0",
            "Requires-Dist: torch>=2.6",
            "Requires-Dist: vlcore<0.2,>=0.1",
            "",
            README,
        ]
        (info / "METADATA").write_text("\n".join(metadata))
        (info / "entry_points.txt").write_text(
            "[vlcore.architectures]\n"
            f"MadeUp{number}ForConditionalGeneration = vl_plugin_made_up_{number}\n"
        )


def main() -> None:
    """Print times and shares as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one round")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as folder:
        install_plugins(Path(folder))
        measured = {name: partial(milliseconds, command) for name, command in COMMANDS.items()}
        many = f"vlcore plugins, {NUM_PLUGINS} more installed"
        measured[many] = partial(milliseconds, COMMANDS["vlcore plugins"], folder)
        for measure in measured.values():  # warm the file cache
            measure()
        times = interleave(rounds, measured)
    print("## Imports\n")
    print(
        "Each command in a fresh interpreter with a warm file cache, and its time as a share of "
        f"`import torch` in the same round. Median (min..max) of {rounds} rounds.\n"
    )
    print(
        markdown_table(
            ["command", "milliseconds", "share of `import torch`"],
            [
                [f"`{name}`", spread(own, 0), spread(ratios(own, times["import torch"]), 3)]
                for name, own in times.items()
            ],
        )
    )


if __name__ == "__main__":
    main()

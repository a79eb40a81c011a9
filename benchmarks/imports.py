"""How long `import vlcore` and `vlcore plugins` take, as a share of `import torch`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from functools import partial

from measure import interleave, markdown_table, ratios, spread

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import vlcore": ["-c", "import vlcore"],
    "vlcore plugins": ["-m", "vlcore", "plugins"],
}


def milliseconds(arguments: list[str]) -> float:
    """Time one fresh interpreter."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - started) * 1000


def main() -> None:
    """Print times and shares as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one round")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    for arguments in COMMANDS.values():  # warm the file cache
        milliseconds(arguments)
    times = interleave(
        rounds,
        {name: partial(milliseconds, arguments) for name, arguments in COMMANDS.items()},
    )
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

"""How long `import vlcore` and `vlcore plugins` take, as a share of `import torch`.

Every round runs the three commands one after another, each in a fresh interpreter; a ratio is taken
within its round.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import vlcore": ["-c", "import vlcore"],
    "vlcore plugins": ["-m", "vlcore", "plugins"],
}


def seconds(arguments: list[str]) -> float:
    """Time one fresh interpreter."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    for arguments in COMMANDS.values():  # warm the file cache
        seconds(arguments)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    print(f"{'command':<16} {'median':>9} {'of import torch: median':>25} {'min':>6} {'max':>6}")
    for name, measured in times.items():
        shares = [own / base for own, base in zip(measured, times["import torch"], strict=True)]
        print(
            f"{name:<16} {statistics.median(measured) * 1000:6.0f} ms "
            f"{statistics.median(shares):25.3f} {min(shares):6.3f} {max(shares):6.3f}"
        )


if __name__ == "__main__":
    main()

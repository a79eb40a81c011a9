"""What `vlcore serve` adds to the pipeline's own times, for one client over a kept connection.

The server is another process; both answer with the demo model, and never at the same time.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from measure import interleave, markdown_table, spread

import vlcore

DEMO = Path(__file__).parents[1] / "demo"
TEXT = "Describe the picture."
Times = tuple[float, float]
"""Milliseconds to the first token and per further one."""


@contextmanager
def serving() -> Iterator[http.client.HTTPConnection]:
    """Start a server and connect to it."""
    command = [sys.executable, "-m", "vlcore", "serve", str(DEMO / "tiny-llava"), "--port", "0"]
    command += ["--device", "cpu", "--dtype", "float32"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if match := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                    break
            else:
                raise RuntimeError("the server did not start")
            connection = http.client.HTTPConnection("127.0.0.1", int(match[1]))
            yield connection
            connection.close()
        finally:
            process.terminate()


def times(arrivals: list[float], started: float) -> Times:
    """Reduce the times at which pieces came."""
    first = arrivals[0] - started
    rest = (arrivals[-1] - arrivals[0]) / max(1, len(arrivals) - 1)
    return first * 1000, rest * 1000


def of_pipeline(pipe: vlcore.Pipeline, content: Any, num_tokens: int) -> Times:
    """Time the pipeline's own stream."""
    config = {"max_new_tokens": num_tokens, "ignore_eos": True}
    started = time.perf_counter()
    messages = [{"role": "user", "content": content}]
    arrivals = [time.perf_counter() for _ in pipe.stream_infer(messages, config)]
    return times(arrivals, started)


def of_server(connection: http.client.HTTPConnection, content: Any, num_tokens: int) -> Times:
    """Time the server's stream, up to the text and not to its end."""
    body = {
        "model": "tiny-llava",
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "temperature": 0,
        "max_tokens": num_tokens,
        "ignore_eos": True,
    }
    started = time.perf_counter()
    connection.request(
        "POST",
        "/v1/chat/completions",
        json.dumps(body),
        {"content-type": "application/json"},
    )
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(response.read().decode())
    arrivals = [time.perf_counter() for line in response if b'"content":"' in line]
    return times(arrivals[1:], started)  # the first one states the role


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rounds, num_tokens = (1, 4) if options.quick else (60, 64)
    picture = base64.b64encode((DEMO / "images" / "tower.png").read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    contents: dict[str, Any] = {
        "text": TEXT,
        "a picture whose rows are kept": [image, {"type": "text", "text": TEXT}],
    }
    pipe = vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")
    rows = []
    with pipe, serving() as connection:
        for name, content in contents.items():
            contenders: dict[str, Callable[[], Times]] = {
                "pipeline": partial(of_pipeline, pipe, content, num_tokens),
                "server": partial(of_server, connection, content, num_tokens),
            }
            for contender in contenders.values():  # fills the caches
                contender()
            measured = interleave(rounds, contenders)
            for position, kind in enumerate(("to the first token", "per further token")):
                own = [value[position] for value in measured["pipeline"]]
                served = [value[position] for value in measured["server"]]
                added = [after - before for before, after in zip(own, served, strict=True)]
                rows.append(
                    [
                        f"{name}, {kind}",
                        f"{statistics.median(own):.2f}",
                        f"{statistics.median(served):.2f}",
                        spread(added),
                    ]
                )
    print("## What the server adds, for one client\n")
    print(
        "Milliseconds of `stream_infer` and of `vlcore serve` in another process, streamed over a "
        f"kept connection, with the demo model in alternating rounds ({rounds}, {num_tokens} "
        "tokens each): medians, and the median (min..max) of the differences within a round.\n"
    )
    print(markdown_table(["request", "pipeline", "server", "added"], rows))


if __name__ == "__main__":
    main()

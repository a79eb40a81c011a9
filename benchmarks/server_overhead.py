"""Measures the overhead of `vlcore serve` over the pipeline, for one persistent connection.

The server is another process; both serve the demo model, and never at the same time.
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
PROMPT = "Describe the picture."
Times = tuple[float, float]
"""Milliseconds to the first text and per further one."""


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
    """Return the time to the first text and the mean time per further one."""
    first = arrivals[0] - started
    rest = (arrivals[-1] - arrivals[0]) / max(1, len(arrivals) - 1)
    return first * 1000, rest * 1000


def time_pipeline(pipe: vlcore.Pipeline, content: Any, num_tokens: int) -> Times:
    """Time the pipeline's stream by the deltas with text: the server sends no others."""
    config = {"max_new_tokens": num_tokens, "ignore_eos": True}
    started = time.perf_counter()
    messages = [{"role": "user", "content": content}]
    deltas = pipe.stream_infer(messages, config)
    arrivals = [time.perf_counter() for delta in deltas if delta.text]
    return times(arrivals, started)


def time_event_loop(pipe: vlcore.Pipeline, content: Any, num_tokens: int) -> Times:
    """Time the pipeline's stream on its own event loop, which needs the fewest thread switches."""
    config = {"max_new_tokens": num_tokens, "ignore_eos": True}

    async def stream() -> Times:
        started = time.perf_counter()
        messages = [{"role": "user", "content": content}]
        deltas = pipe.astream_infer(messages, config)
        arrivals = [time.perf_counter() async for delta in deltas if delta.text]
        return times(arrivals, started)

    return pipe.run(stream())


def time_server(connection: http.client.HTTPConnection, content: Any, num_tokens: int) -> Times:
    """Time the server's stream up to the last text, not to its end."""
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
    return times(arrivals[1:], started)  # the first one has the role


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rounds, num_tokens = (1, 4) if options.quick else (60, 64)
    image = base64.b64encode((DEMO / "images" / "tower.png").read_bytes()).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    contents: dict[str, Any] = {
        "text": PROMPT,
        "a cached image": [part, {"type": "text", "text": PROMPT}],
    }
    pipe = vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")
    rows = []
    with pipe, serving() as connection:
        for name, content in contents.items():
            contenders: dict[str, Callable[[], Times]] = {
                "stream_infer": partial(time_pipeline, pipe, content, num_tokens),
                "event loop": partial(time_event_loop, pipe, content, num_tokens),
                "server": partial(time_server, connection, content, num_tokens),
            }
            for contender in contenders.values():  # fills the caches
                contender()
            measured = interleave(rounds, contenders)
            for position, kind in enumerate(("to the first text", "per further token")):
                values = {
                    name: [pair[position] for pair in pairs] for name, pairs in measured.items()
                }
                row = [f"{name}, {kind}"]
                row += [f"{statistics.median(times_ms):.2f}" for times_ms in values.values()]
                for baseline in ("stream_infer", "event loop"):
                    pairs = zip(values[baseline], values["server"], strict=True)
                    row.append(spread([after - before for before, after in pairs]))
                rows.append(row)
    print("## Server overhead, for one client\n")
    print(
        "Milliseconds of `stream_infer`, of `astream_infer` on the pipeline's event loop "
        "(`Pipeline.run`) and of `vlcore serve` in another process, streamed over a persistent "
        f"connection, with the demo model in {rounds} alternating rounds of {num_tokens} tokens: "
        "medians, and the median (min..max) of the server's overhead within a round.\n"
    )
    heads = ["request", "stream_infer", "event loop", "server", "overhead on stream_infer"]
    print(markdown_table([*heads, "overhead on the event loop"], rows))


if __name__ == "__main__":
    main()

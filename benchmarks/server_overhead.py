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
"""Milliseconds to the first piece of text and per further one."""


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
    """Time the pipeline's own stream, by the pieces with text: the server sends no others."""
    config = {"max_new_tokens": num_tokens, "ignore_eos": True}
    started = time.perf_counter()
    messages = [{"role": "user", "content": content}]
    pieces = pipe.stream_infer(messages, config)
    arrivals = [time.perf_counter() for piece in pieces if piece.text]
    return times(arrivals, started)


def of_loop(pipe: vlcore.Pipeline, content: Any, num_tokens: int) -> Times:
    """Time the pipeline's stream on its own event loop, where it changes threads least."""
    config = {"max_new_tokens": num_tokens, "ignore_eos": True}

    async def stream() -> Times:
        started = time.perf_counter()
        messages = [{"role": "user", "content": content}]
        pieces = pipe.astream_infer(messages, config)
        arrivals = [time.perf_counter() async for piece in pieces if piece.text]
        return times(arrivals, started)

    return pipe.run(stream())


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
                "stream_infer": partial(of_pipeline, pipe, content, num_tokens),
                "its own loop": partial(of_loop, pipe, content, num_tokens),
                "server": partial(of_server, connection, content, num_tokens),
            }
            for contender in contenders.values():  # fills the caches
                contender()
            measured = interleave(rounds, contenders)
            for position, kind in enumerate(("to the first text", "per further token")):
                of = {who: [value[position] for value in all_] for who, all_ in measured.items()}
                row = [f"{name}, {kind}"]
                row += [f"{statistics.median(values):.2f}" for values in of.values()]
                for who in ("stream_infer", "its own loop"):
                    pairs = zip(of[who], of["server"], strict=True)
                    row.append(spread([after - before for before, after in pairs]))
                rows.append(row)
    print("## What the server adds, for one client\n")
    print(
        "Milliseconds of `stream_infer`, of `astream_infer` on the pipeline's own loop "
        "(`Pipeline.run`) and of `vlcore serve` in another process, streamed over a kept "
        f"connection, with the demo model in alternating rounds ({rounds}, {num_tokens} tokens "
        "each): medians, and the median (min..max) of what the server adds within a round.\n"
    )
    heads = ["request", "stream_infer", "own loop", "server", "added to stream_infer"]
    print(markdown_table([*heads, "added to the own loop"], rows))


if __name__ == "__main__":
    main()

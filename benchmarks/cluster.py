"""Measures a cluster of `vlcore cluster` next to `vlcore serve`, both on this machine.

Both serve the demo model with times of its own: see `_paced.py`.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from measure import interleave, markdown_table, progress, quartiles, ratios, spread

TITLE = "## A cluster on one machine"
PROMPT = "Describe the picture."
IMAGE_S = 0.05
"""Time of an image in the encoders that are compared."""
STEP_S = 0.02
"""Time of a step of the language model under 32 requests."""
START_S = 600.0
HEALTH_CHECK_S = 6.0
"""Time until HAProxy has checked a new ingress; Ray's own proxy answers before."""
_numbers = count()


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int = 40
    """Rounds of one stream after another."""
    num_tokens: int = 64
    load_rounds: int = 3
    num_streams: int = 32
    scale_rounds: int = 2
    num_images: int = 200
    num_killed: int = 120
    num_repeated: int = 40
    num_rows: int = 50


QUICK = Sizes(2, 4, 1, 4, 1, 8, 12, 4, 4)


@dataclass(frozen=True)
class Server:
    """A server of the model."""

    port: int
    name: str
    process_id: int

    def cpu_s(self) -> float:
        """Return the CPU time of all its processes so far, in seconds."""
        import psutil

        root = psutil.Process(self.process_id)
        times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        return sum(one.user + one.system for one in times)

    def complete(self, content: Any, num_tokens: int) -> list[tuple[float, str]]:
        """Stream an answer, and return the arrival and the text of each chunk."""
        body = {
            "model": "paced",
            "messages": [{"role": "user", "content": content}],
            "stream": True,
            "temperature": 0,
            "max_tokens": num_tokens,
            "ignore_eos": True,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(
                "POST",
                "/v1/chat/completions",
                json.dumps(body),
                {"content-type": "application/json"},
            )
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(response.read().decode())
            chunks = []
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(str(event["error"]))
                delta = event["choices"][0]["delta"] if event["choices"] else {}
                if delta.get("content"):
                    chunks.append((time.perf_counter(), delta["content"]))
            return chunks
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, float]:
        """Return the status of a page, and the milliseconds that it took."""
        started = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            return response.status, (time.perf_counter() - started) * 1000
        finally:
            connection.close()

    def times(self, content: Any, num_tokens: int) -> tuple[float, float]:
        """Return milliseconds to the first text, and for each further token."""
        started = time.perf_counter()
        arrivals = [arrived for arrived, _ in self.complete(content, num_tokens)]
        rest = (arrivals[-1] - arrivals[0]) / (num_tokens - 1)
        return (arrivals[0] - started) * 1000, rest * 1000

    def answers(self, contents: Sequence[Any], num_tokens: int, num_threads: int) -> list[str]:
        """Return the answers of many requests, and an empty one where there was an error."""

        def answer(content: Any) -> str:
            try:
                return "".join(text for _, text in self.complete(content, num_tokens))
            except (RuntimeError, OSError, http.client.HTTPException) as error:
                progress(f"{self.name}: {error}")
                return ""

        with ThreadPoolExecutor(num_threads) as pool:
            return list(pool.map(answer, contents))

    def rate(self, contents: Sequence[Any], num_tokens: int, num_threads: int) -> float:
        """Return requests a second."""
        started = time.perf_counter()
        answers = self.answers(contents, num_tokens, num_threads)
        if not all(answers):
            raise RuntimeError(f"{answers.count('')} requests failed")
        return len(contents) / (time.perf_counter() - started)


def image_content(number: int | None = None) -> list[Any]:
    """Return a question about an image of its own, or about the one with a number."""
    from PIL import Image

    number = next(_numbers) + 1000 if number is None else number
    buffer = io.BytesIO()
    color = (number % 256, number // 256 % 256, number // 65536)
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": PROMPT}]


class Cluster:
    """A cluster, started by `vlcore cluster`, and the connection of this process to its Ray."""

    def __init__(self, server: Server, config: dict[str, Any]) -> None:
        self.server = server
        self._config = config

    def scale(self, num_encoders: int) -> None:
        """Change the number of encoders, and wait until they run."""
        from vlcore.cluster.running import _apply

        for deployment in self._config["applications"][0]["deployments"]:
            if deployment["name"] == "Encoder":
                deployment["num_replicas"] = num_encoders
        _apply(self._config)
        self.wait_for_encoders(num_encoders)

    def wait_for_encoders(self, number: int) -> None:
        """Wait until a number of encoders run, and no others start or stop."""
        from ray import serve

        def are_running() -> bool:
            application = serve.status().applications["vlcore"]
            encoder = application.deployments.get("Encoder")
            return encoder is not None and encoder.replica_states == {"RUNNING": number}

        wait_for(are_running)

    def kill_encoder(self) -> None:
        """End the process of one encoder."""
        import psutil

        for process in psutil.Process(self.server.process_id).children(recursive=True):
            if "ServeReplica:vlcore:Encoder" in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
                return
        raise RuntimeError("no encoder is running")


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("waited in vain")
        time.sleep(0.2)


@contextmanager
def serving(checkpoint: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Serve the checkpoint in a single process."""
    command = [sys.executable, "-m", "vlcore", "serve", str(checkpoint), "--port", "0"]
    command += ["--device", "cpu", "--dtype", "float32", "--engine", "transformers"]
    command += ["--model-name", "paced"]
    log = checkpoint / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stderr=output, env=os.environ | dict(environment))
    try:
        wait_for(lambda: "is served at" in log.read_text() or process.poll() is not None)
        found = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
        if found is None:
            raise RuntimeError(f"the server did not start:\n{log.read_text()}")
        yield Server(int(found[1]), "single process", process.pid)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def clustered(checkpoint: Path, environment: Mapping[str, str]) -> Iterator[Cluster]:
    """Serve the checkpoint with two encoders and one language model."""
    import ray
    import yaml

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
    command = [sys.executable, "-m", "vlcore", "cluster", str(checkpoint), "--port", str(port)]
    command += ["--dtype", "float32", "--engine", "transformers", "--model-name", "paced"]
    directory = Path(tempfile.mkdtemp(prefix="vlb-"))  # sockets have short paths
    os.environ |= {"RAY_TMPDIR": str(directory), "RAY_AUTH_MODE": "disabled"}
    os.environ |= environment
    command += ["--encoders", "2"]
    written = subprocess.run(
        [*command, "--write", "-"], stdout=subprocess.PIPE, text=True, check=True
    )
    log = checkpoint / "cluster.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_for(lambda: "served at" in log.read_text() or process.poll() is not None)
        if process.poll() is not None:
            raise RuntimeError(f"the cluster did not start:\n{log.read_text()}")
        ray.init(address="auto", namespace="serve", log_to_driver=False, logging_level="ERROR")
        yield Cluster(Server(port, "cluster", process.pid), yaml.safe_load(written.stdout))
    finally:
        ray.shutdown()
        process.terminate()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


# -- the measurements: each returns rows of the table


def overhead(sizes: Sizes, single: Server, cluster: Cluster) -> list[list[str]]:
    """Compare streams of one client, one after another."""
    rows = []
    for name, content in (("text", PROMPT), ("a cached image", image_content(1))):
        servers = {"single": single, "cluster": cluster.server}
        for server in servers.values():
            server.times(content, sizes.num_tokens)  # fills the caches
        measured = interleave(
            sizes.rounds,
            {
                label: partial(server.times, content, sizes.num_tokens)
                for label, server in servers.items()
            },
        )
        pairs = list(zip(measured["cluster"], measured["single"], strict=True))
        for position, kind, wanted in ((0, "to the first text", 15), (1, "per further token", 1)):
            added = [slow[position] - fast[position] for slow, fast in pairs]
            single_ms = statistics.median(fast[position] for _, fast in pairs)
            rows.append(
                [
                    f"{name}: added {kind}, ms (single process: {single_ms:.1f})",
                    quartiles(added),
                    f"<= {wanted} at the median",
                ]
            )
    return rows


def floor(sizes: Sizes, cluster: Cluster) -> list[list[str]]:
    """Measure requests that Serve answers without a model."""
    import _floor
    from ray import serve

    serve.run(_floor.application(), name="floor", route_prefix=_floor.ROUTE)
    wait_for(lambda: cluster.server.get(f"{_floor.ROUTE}/")[0] == 200)
    time.sleep(HEALTH_CHECK_S)
    times_ms = [cluster.server.get(f"{_floor.ROUTE}/")[1] for _ in range(sizes.rounds)]
    serve.delete("floor")
    name = "a request that an empty application on Ray Serve answers, ms in all"
    return [[name, quartiles(times_ms), ""]]


def throughput(
    sizes: Sizes, single: Server, cluster: Cluster, checkpoint: Path, set_pace: Any
) -> list[list[str]]:
    """Compare many streams at once, with steps that take a GPU's time."""
    set_pace(checkpoint, step_s=STEP_S)
    contents = [f"{PROMPT} {number}" for number in range(sizes.num_streams)]
    num_tokens = sizes.num_streams * sizes.num_tokens

    def load(server: Server) -> tuple[float, float]:
        """Return tokens a second, and milliseconds of CPU time for each."""
        before = server.cpu_s()
        rate = server.rate(contents, sizes.num_tokens, sizes.num_streams) * sizes.num_tokens
        return rate, (server.cpu_s() - before) * 1000 / num_tokens

    servers = (single, cluster.server)
    measured = interleave(sizes.load_rounds, {one.name: partial(load, one) for one in servers})
    set_pace(checkpoint)
    single_rates, single_ms = zip(*measured[single.name], strict=True)
    cluster_rates, cluster_ms = zip(*measured[cluster.server.name], strict=True)
    return [
        [
            f"{sizes.num_streams} streams at once, steps of {STEP_S * 1000:.0f} ms, of the single "
            f"process's tokens/s ({statistics.median(single_rates):.0f})",
            spread(ratios(cluster_rates, single_rates)),
            ">= 0.9",
        ],
        ["CPU time of a token in all processes of the cluster, ms", spread(cluster_ms), ""],
        ["the same of the single process, ms", spread(single_ms), ""],
    ]


def scaling(sizes: Sizes, cluster: Cluster, checkpoint: Path, set_pace: Any) -> list[list[str]]:
    """Compare two encoders with one, when an image takes a GPU's time."""
    set_pace(checkpoint, image_s=IMAGE_S)

    def rate(num_encoders: int) -> float:
        cluster.scale(num_encoders)
        cluster.server.rate([image_content() for _ in range(8)], 1, 4)  # the first batch is slow
        contents = [image_content() for _ in range(sizes.num_images)]
        return cluster.server.rate(contents, 1, 32)

    measured = interleave(sizes.scale_rounds, {number: partial(rate, number) for number in (1, 2)})
    cluster.scale(2)
    set_pace(checkpoint)
    return [
        [
            f"images/s of two encoders by those of one ({statistics.median(measured[1]):.1f}), "
            f"{IMAGE_S * 1000:.0f} ms an image",
            spread(ratios(measured[2], measured[1])),
            ">= 1.8",
        ]
    ]


def killing(
    sizes: Sizes, single: Server, cluster: Cluster, checkpoint: Path, set_pace: Any
) -> list[list[str]]:
    """End one of two encoders under load."""
    set_pace(checkpoint, image_s=IMAGE_S)
    contents = [image_content() for _ in range(sizes.num_killed)]
    expected = single.answers(contents, 8, 8)
    threading.Timer(1.0, cluster.kill_encoder).start()
    answers = cluster.server.answers(contents, 8, 8)
    num_right = sum(one == other != "" for one, other in zip(answers, expected, strict=True))
    cluster.wait_for_encoders(2)
    set_pace(checkpoint)
    return [
        [
            f"{len(contents)} requests with images while one of two encoders is killed: "
            "answered as by the single process",
            str(num_right),
            str(len(contents)),
        ]
    ]


def affinity(
    sizes: Sizes, cluster: Cluster, checkpoint: Path, num_computed: Any
) -> list[list[str]]:
    """Count how many images are encoded when each is asked about three times."""
    contents = [image_content() for _ in range(sizes.num_repeated)]
    before = num_computed(checkpoint)
    for _ in range(3):
        if not all(cluster.server.answers(contents, 1, 8)):
            raise RuntimeError("a request failed")
    return [
        [
            f"{len(contents)} images, each asked about three times, over two encoders: computed",
            str(num_computed(checkpoint) - before),
            str(len(contents)),
        ]
    ]


def rows_between_deployments(sizes: Sizes) -> list[list[str]]:
    """Measure how long embeddings travel, and what stays in the ingress."""
    import _rows_probe
    from ray import serve

    handle: Any = serve.run(_rows_probe.application(), name="rows", route_prefix=None)
    handle.measure.remote(5).result()
    times_ms, grown_mib = handle.measure.remote(sizes.num_rows).result()
    serve.delete("rows")
    rows, width = _rows_probe.SHAPE
    total_mib = sizes.num_rows * rows * width * 2 / 2**20
    return [
        [
            f"embeddings of {rows} x {width} float16 from the encoder to the language model, ms",
            quartiles([sent_ms for _, sent_ms in times_ms]),
            "<= 10 at the median",
        ],
        [
            "the same from the end of the forward pass, with the encoder's checks, ms",
            quartiles([computed_ms for computed_ms, _ in times_ms]),
            "",
        ],
        [
            f"memory of the ingress after {sizes.num_rows} of them ({total_mib:.0f} MiB), MiB",
            f"{grown_mib:+.1f}",
            "no copies",
        ],
    ]


def measure(sizes: Sizes) -> list[list[str]]:
    """Measure everything in one run."""
    import _paced

    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "paced"
        environment = _paced.install(Path(temporary) / "plugin", checkpoint)
        with (
            serving(checkpoint, environment) as single,
            clustered(checkpoint, environment) as cluster,
        ):
            return [
                *killing(sizes, single, cluster, checkpoint, _paced.set_pace),
                *overhead(sizes, single, cluster),
                *floor(sizes, cluster),
                *throughput(sizes, single, cluster, checkpoint, _paced.set_pace),
                *rows_between_deployments(sizes),
                *scaling(sizes, cluster, checkpoint, _paced.set_pace),
                *affinity(sizes, cluster, checkpoint, _paced.num_computed),
            ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: checks that all run")
    options = parser.parse_args()
    header = ["what", "median (range)", "wanted"]
    if importlib.util.find_spec("ray") is None:
        print(f"{TITLE}\n\nNot measured: Ray is not installed (`make bench-ray`).\n")
        print(markdown_table(header, [["-", "-", "-"]]))
        return
    sizes = QUICK if options.quick else Sizes()
    rows = measure(sizes)
    print(f"{TITLE}\n")
    print(
        f"`vlcore cluster` with two encoders, one language model and one ingress next to `vlcore "
        f"serve`, both with the demo model in float32 on the CPUs of this machine, in alternating "
        f"rounds: {sizes.rounds} streams of {sizes.num_tokens} tokens one after another, with "
        f"lower and upper quartiles of what the cluster adds within a round; "
        f"{sizes.load_rounds} rounds of streams at once, and {sizes.scale_rounds} of "
        f"{sizes.num_images} images, with the lowest and highest ratio within a round. Times of "
        f"a GPU are slept. Embeddings travel from a replica of the encoder to the engine of a "
        f"language model, through two calls and the object store.\n"
    )
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()

"""A cluster that ``vlcore cluster`` starts, with a Ray of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import ray
from ray import serve
from waits import TIMEOUT_S, wait_for

from vlcore.cluster.running import _apply

DEMO = Path(__file__).parents[1] / "demo"
MAX_REQUESTS = 8


@dataclass
class Cluster:
    """A running cluster of the demo model, with two encoders and one language model."""

    process: subprocess.Popen[str]
    port: int
    config: dict[str, Any]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S
        )

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Return the processes of the replicas of a deployment."""
        title = f"ServeReplica:vlcore:{deployment}"
        return [process for process in self.processes() if title in _title(process)]

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def num_running(self, deployment: str) -> int:
        """Return how many replicas are ready, as Serve reports it."""
        application = serve.status().applications["vlcore"]
        return int(application.deployments[deployment].replica_states.get("RUNNING", 0))

    def scale(self, numbers: Mapping[str, int]) -> None:
        """Change numbers of replicas, and wait until they are reached."""
        for deployment in self.config["applications"][0]["deployments"]:
            if deployment["name"] in numbers:
                deployment["num_replicas"] = numbers[deployment["name"]]
        _apply(self.config)
        self.wait_for_replicas(numbers)

    def wait_for_replicas(self, numbers: Mapping[str, int]) -> None:
        """Wait until exactly these numbers of replicas exist and are ready."""
        for name, number in numbers.items():
            wait_for(lambda: self.num_running(name) == len(self.replicas(name)) == number)  # noqa: B023

    def metric(self, name: str) -> float:
        """Return a figure of the ingress."""
        import httpx2

        lines = httpx2.get(f"{self.url}/metrics").text.splitlines()
        (value,) = (line.split()[-1] for line in lines if line.split(" ")[0] == name)
        return float(value)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def start(command: list[str], log: Path) -> subprocess.Popen[str]:
    """Start the command until it serves; a busy machine may exceed Ray's 30 s for its own start."""
    for _ in range(5):
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, text=True)
        wait_for(lambda: "served at" in log.read_text() or process.poll() is not None)  # noqa: B023
        if process.poll() is None:
            return process
        assert "Ray does not start here" in log.read_text(), log.read_text()
    raise AssertionError(log.read_text())


@pytest.fixture(scope="session")
def started() -> Iterator[Cluster]:
    """The cluster, and a connection of this process to its Ray."""
    import yaml

    directory = Path(tempfile.mkdtemp(prefix="vlr-"))  # sockets have short paths
    port = free_port()
    command = [
        sys.executable, "-m", "vlcore", "cluster", str(DEMO / "tiny-llava"), "--port", str(port),
        "--model-name", "tiny", "--engine", "transformers", "--dtype", "float32",
        "--encoders", "2", "--set", f"server.max_requests={MAX_REQUESTS}",
        "--set", "generation_config=false",
    ]  # fmt: skip
    written = subprocess.run(
        [*command, "--write", "-"], capture_output=True, text=True, check=True
    ).stdout
    os.environ["RAY_TMPDIR"] = str(directory)
    log = directory / "log"
    process = start(command, log)
    cluster = Cluster(process, port, yaml.safe_load(written), log)
    try:
        (address,) = re.findall(r"the address of Ray is (\S+)", log.read_text())
        ray.init(address, namespace="serve", log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(TIMEOUT_S)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    """The cluster, with two encoders and a language model that are ready."""
    started.wait_for_replicas({"Encoder": 2, "LanguageModel": 1})
    return started

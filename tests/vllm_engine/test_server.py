"""``vlcore serve --engine vllm``, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from server_client import GOOD, GOOD_COMPLETION, chat, send, text_part
from waits import TIMEOUT_S, wait_for

DEMO = Path(__file__).parents[2] / "demo"


class RunningServer:
    """The command, with its log."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8")

    @property
    def url(self) -> str:
        found = re.search(r"is served at (http://[0-9.]+:\d+)", self.log)
        return found.group(1) if found else ""

    def engine_process(self) -> psutil.Process:
        """Return the process of vLLM's engine, which the server has started."""
        (core,) = [
            child
            for child in psutil.Process(self.process.pid).children()
            if "resource_tracker" not in " ".join(child.cmdline())
        ]
        return core


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    command = [sys.executable, "-m", "vlcore", "serve", str(DEMO / "tiny-llava"), "--port", "0"]
    command += ["--model-name", "tiny", "--device", "cpu", "--dtype", "float32"]
    command += ["--engine", "vllm", "--max-num-seqs", "8", "--session-len", "512"]
    environment = os.environ | {"VLCORE_CACHE": str(tmp_path / "cache")}
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file, text=True, env=environment)
    running = RunningServer(process, log)
    try:
        wait_for(lambda: running.url or process.poll() is not None)
        assert running.url, running.log
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT_S)


def post(body: dict[str, object]) -> bytes:
    content = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()


def num_running(server: RunningServer) -> int:
    """Return how many requests the server counts."""
    text = send(server.url, get("/metrics")).body.decode()
    values = re.findall(r"^vlcore_\w*(?:running|waiting)\w*(?:\{[^}]*\})? (\S+)$", text, re.M)
    assert values
    return sum(int(float(value)) for value in values)


def test_the_server_answers_frees_what_is_left_and_ends_with_its_engine(
    server: RunningServer,
) -> None:
    completion = send(server.url, post(GOOD)).json()
    assert completion["choices"][0]["message"]["content"] == GOOD_COMPLETION
    assert send(server.url, get("/ready")).status == 200

    # A client that disconnects.
    long = chat(text_part("Tell me."), stream=True, max_tokens=400, ignore_eos=True)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        connection.sendall(post(long))
        assert b"200 OK" in connection.recv(4096)
    wait_for(lambda: num_running(server) == 0)

    # The engine's process, killed while it serves a request.
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        connection.sendall(post(long))
        received = connection.recv(4096)
        assert b"200 OK" in received
        server.engine_process().send_signal(signal.SIGKILL)
        while more := connection.recv(4096):
            received += more
    assert b'"error"' in received
    assert server.process.wait(TIMEOUT_S) == 1
    assert "vLLM's engine process has ended" in server.log

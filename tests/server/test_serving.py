from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time

from server.conftest import DEMO, running
from server.wire import LONG, ask, connect, exchange, post, read_until

import vlcore
from vlcore.inference.pipeline import Pipeline


def pipeline() -> Pipeline:
    return vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")


READY = b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n"


def test_what_runs_may_finish_while_new_requests_are_refused() -> None:
    with running(pipeline(), shutdown_timeout_s=20) as server:
        tokens = {"max_tokens": 150, "ignore_eos": True, "stream": True}
        with connect(server) as running_one, connect(server) as kept:
            running_one.sendall(post(ask(**tokens)))
            read_until(running_one, b"data: ")
            kept.sendall(READY)
            assert b"200 OK" in read_until(kept, b'"ready"}')
            server._admission.is_stopping = True
            assert exchange(server, READY)[0] == 503
            status, came = exchange(server, post(ask()))
            assert status == 503
            assert "retry-after" in came.lower()
            kept.sendall(READY)
            assert b"503" in read_until(kept, b"stopping")
            server.stop()
            assert b"[DONE]" in read_until(running_one, b"[DONE]")


def test_what_does_not_finish_is_cancelled_and_told() -> None:
    started = 0.0
    with running(pipeline(), shutdown_timeout_s=1) as server:
        connection = connect(server)
        connection.sendall(post(ask(stream=True, **LONG)))
        read_until(connection, b"data: ")
        started = time.monotonic()
    assert time.monotonic() - started < 10
    with connection:
        assert b'"code":"stopping"' in read_until(connection, b"nothing ends it but its end")


def test_the_command_stops_cleanly_and_at_once_when_told_twice() -> None:
    command = [sys.executable, "-m", "vlcore", "serve", str(DEMO / "tiny-llava"), "--port", "0"]
    command += ["--model-name", "tiny", "--device", "cpu", "--shutdown-timeout-s", "60"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = next(
            int(found[1])
            for line in process.stderr
            if (found := re.search(r"http://127\.0\.0\.1:(\d+)", line))
        )
        try:
            with connect_to(port) as connection:
                connection.sendall(post(ask(stream=True, **LONG)))
                read_until(connection, b"data: ")
                process.send_signal(signal.SIGTERM)
                time.sleep(0.5)
                assert process.poll() is None
                process.send_signal(signal.SIGTERM)
                log = process.stderr.read()
                assert process.wait(10) == 0, log
        finally:
            process.kill()
    assert "Traceback" not in log


def connect_to(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)

"""OpenAI's own JavaScript client against the server, in Node.js and in a page of another origin."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from server.conftest import DEMO, running
from server_client import data_url
from waits import TIMEOUT_S

import vlcore

pytestmark = pytest.mark.slow

PACKAGE = "openai@6.49.0"
PAGE = """<!doctype html><title>app</title>
<script type="importmap">{"imports": {"openai": "./node_modules/openai/index.mjs"}}</script>
<script type="module">
  import { outcomes } from "./openai_client.mjs";
  globalThis.outcomes = outcomes;
</script>
"""
NODE = """import { outcomes } from "./openai_client.mjs";
console.log(JSON.stringify(await outcomes(JSON.parse(process.argv[2]))));
"""
EXPECTED = {
    "text": "red",
    "streamed": "a large red circle and a small blue square",
    "imageTokens": 64,
    "models": ["tiny"],
    "wrongKey": ["AuthenticationError", 401, "invalid_api_key"],
    "wrongModel": ["NotFoundError", 404, "model_not_found"],
    "wrongImage": ["BadRequestError", 400, "invalid_image"],
    "afterAbort": True,
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the client from npm, and a page and a program that use it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    directory = tmp_path_factory.mktemp("app")
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
    installed = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if installed.returncode:
        pytest.skip(f"npm cannot install {PACKAGE}: {installed.stderr[-200:]}")
    shutil.copy(Path(__file__).with_name("openai_client.mjs"), directory)
    (directory / "index.html").write_text(PAGE)
    (directory / "app.mjs").write_text(NODE)
    return directory


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files, and logs nothing."""

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def origin(app: Path) -> Iterator[str]:
    """The origin of the page, which is not the server's."""
    files = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(app)))
    thread = threading.Thread(target=files.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{files.server_port}"
    files.shutdown()
    thread.join(TIMEOUT_S)
    files.server_close()


@pytest.fixture(scope="module")
def arguments(origin: str) -> Iterator[dict[str, str]]:
    """What the client is given: the URL and the key of a server that allows the page's origin."""
    pipe = vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")
    with running(pipe, api_keys=("first",), allowed_origins=(origin,)) as server:
        host, port = server.address
        yield {
            "baseURL": f"http://{host}:{port}/v1",
            "apiKey": "first",
            "image": data_url("circle_and_square.png"),
        }


def test_the_client_in_node(app: Path, arguments: dict[str, str]) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    finished = subprocess.run(
        [node, "app.mjs", json.dumps(arguments)],
        cwd=app,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout) == EXPECTED


def test_the_client_in_a_page_of_an_allowed_origin(origin: str, arguments: dict[str, str]) -> None:
    with chromium() as browser, browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(1000 * TIMEOUT_S)
        page.goto(origin)
        page.wait_for_function("Boolean(globalThis.outcomes)")
        assert page.evaluate("(given) => outcomes(given)", arguments) == EXPECTED


def test_a_page_of_another_origin_gets_no_response(origin: str, arguments: dict[str, str]) -> None:
    other = origin.replace("127.0.0.1", "localhost")
    with chromium() as browser, browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(1000 * TIMEOUT_S)
        page.goto(other)
        page.wait_for_function("Boolean(globalThis.outcomes)")
        outcome = page.evaluate(
            "(given) => outcomes(given).catch((error) => error.constructor.name)", arguments
        )
        assert outcome == "APIConnectionError"

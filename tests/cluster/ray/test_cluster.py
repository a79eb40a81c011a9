"""A real cluster on Ray Serve: two encoders, a language model and an ingress, each a process."""

from __future__ import annotations

import base64
import io
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import psutil
import pytest
from cluster_fixture import DEMO, MAX_REQUESTS, Cluster
from PIL import Image
from ray import serve
from server_client import GOOD, chat, image_part, text_part
from waits import TIMEOUT_S, wait_for

import vlcore

IMAGES = sorted(path.name for path in (DEMO / "images").glob("*.png"))[:4]
LONG: dict[str, Any] = {"max_tokens": 900, "extra_body": {"ignore_eos": True}}
"""More tokens than a test waits for."""


def url_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def colored_part(number: int, size: int = 16) -> dict[str, Any]:
    """Return an image of which there is one for each number."""
    color = (number % 256, number // 256 % 256, 77)
    encoded = base64.b64encode(png(Image.new("RGB", (size, size), color))).decode()
    return url_part(f"data:image/png;base64,{encoded}")


def ask(client: openai.OpenAI, *content: Any, **options: Any) -> Any:
    return client.chat.completions.create(**chat(*content, **options))


def streamed(client: openai.OpenAI, *content: Any, **options: Any) -> str:
    chunks = ask(client, *content, stream=True, **options)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.fixture(scope="module")
def pipe() -> Iterator[vlcore.Pipeline]:
    with vlcore.pipeline(
        DEMO / "tiny-llava", engine="transformers", device="cpu", dtype="float32"
    ) as pipe:
        yield pipe


def test_answers_are_those_of_a_single_process(cluster: Cluster, pipe: vlcore.Pipeline) -> None:
    client = cluster.client()
    contents = [
        [image_part(name), text_part(text)]
        for name in IMAGES
        for text in ("What colour is the circle?", "How many shapes are there?")
    ]
    contents += [[text_part("Hello")], [image_part(IMAGES[0]), image_part(IMAGES[1])]]
    for content in contents:
        body = chat(*content)
        options = {"max_new_tokens": 12, "temperature": 0.0, "ignore_eos": True}
        expected = pipe(body["messages"], options).text
        extra: dict[str, Any] = {"max_tokens": 12, "extra_body": {"ignore_eos": True}}
        assert ask(client, *content, **extra).choices[0].message.content == expected
        assert streamed(client, *content, **extra) == expected


def test_options_and_structured_output_reach_the_language_model(cluster: Cluster) -> None:
    client = cluster.client()
    completion = ask(
        client, text_part("Choose"), n=2, seed=1, logprobs=True, top_logprobs=2, max_tokens=8,
        extra_body={"guided_choice": ["red", "green"]},
    )  # fmt: skip
    assert [choice.message.content in ("red", "green") for choice in completion.choices] == [
        True
    ] * 2
    assert len(completion.choices[0].logprobs.content[0].top_logprobs) == 2
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, text_part("Choose"), extra_body={"guided_regex": "("})
    assert caught.value.code == "invalid_grammar"


def test_the_same_image_reaches_the_encoder_that_has_it(cluster: Cluster) -> None:
    client = cluster.client()
    num_encoded = cluster.metric("vlcore_images_encoded_total")
    num_hits = cluster.metric("vlcore_image_cache_hits_total")
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):  # an image twice at a time would be encoded once too, and not be a hit
            jobs = [pool.submit(ask, client, colored_part(1000 + i)) for i in range(20)]
            for job in jobs:
                job.result(TIMEOUT_S)
    assert cluster.metric("vlcore_images_encoded_total") - num_encoded == 20
    assert cluster.metric("vlcore_image_cache_hits_total") - num_hits == 40


def test_bad_input_is_refused_and_restarts_nothing(cluster: Cluster) -> None:
    client = cluster.client()
    before = {process.pid for process in cluster.processes()}
    num_encoded = cluster.metric("vlcore_images_encoded_total")
    damaged = base64.b64encode(png(Image.new("RGB", (400, 400)))[:-300]).decode()
    bad: list[tuple[list[Any], str]] = [
        ([url_part("data:image/png;base64,aGVsbG8=")], "invalid_image"),
        ([url_part(f"data:image/png;base64,{damaged}")], "invalid_image"),
        ([url_part("http://127.0.0.1:1/a.png")], "invalid_image_url"),
        ([url_part("file:///etc/passwd")], "invalid_image"),
        ([image_part(IMAGES[0]), text_part("word " * 2000)], "context_length_exceeded"),
        ([colored_part(2000 + i) for i in range(17)], "context_length_exceeded"),
    ]
    for content, code in bad:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, *content)
        assert caught.value.code == code
    assert cluster.metric("vlcore_images_encoded_total") == num_encoded
    assert ask(client, *GOOD["messages"][0]["content"]).choices[0].message.content == "red"
    assert before <= {process.pid for process in cluster.processes()}


def test_a_client_that_disconnects_frees_the_language_model(cluster: Cluster) -> None:
    engine = serve.get_deployment_handle("LanguageModel", "vlcore")
    stream = ask(cluster.client(), text_part("Hello"), stream=True, **LONG)
    next(iter(stream))
    assert engine.stats.remote().result().num_running == 1
    stream.close()
    wait_for(lambda: not engine.stats.remote().result().num_running)
    wait_for(lambda: not cluster.metric("vlcore_active_requests"))


def test_more_requests_than_the_bound_receive_429(cluster: Cluster) -> None:
    client = cluster.client()
    (replica,) = cluster.replicas("LanguageModel")
    with ThreadPoolExecutor(MAX_REQUESTS) as pool:
        replica.suspend()
        try:
            jobs = [pool.submit(ask, client, text_part("Hello")) for _ in range(MAX_REQUESTS)]
            wait_for(lambda: cluster.metric("vlcore_active_requests") == MAX_REQUESTS)
            with pytest.raises(openai.RateLimitError) as caught:
                ask(client, text_part("Hello"))
        finally:
            replica.resume()
        assert all(job.result(TIMEOUT_S).choices for job in jobs)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert caught.value.code == "too_many_requests"


class Load:
    """Requests with images that run until a test has seen enough."""

    def __init__(self, cluster: Cluster, first: int, num_threads: int = 4) -> None:
        self._client = cluster.client()
        self._lock = threading.Lock()
        self._next = first
        self._stopped = threading.Event()
        self.num_done = 0
        self._pool = ThreadPoolExecutor(num_threads)
        self._jobs = [self._pool.submit(self._run) for _ in range(num_threads)]

    def _run(self) -> None:
        while not self._stopped.is_set():
            with self._lock:
                number = self._next = self._next + 1
            # Half of the images are asked for again.
            completion = ask(self._client, colored_part(number // 2), text_part("What is it?"))
            assert completion.choices[0].message.content
            with self._lock:
                self.num_done += 1

    def wait_for_more(self, number: int) -> None:
        """Wait until more requests were answered, or one has failed."""
        goal = self.num_done + number
        wait_for(lambda: self.num_done >= goal or any(job.done() for job in self._jobs))

    def stop(self) -> None:
        """Stop, and raise the error of a request that failed."""
        self._stopped.set()
        for job in self._jobs:
            job.result(TIMEOUT_S)
        self._pool.shutdown()


def under_load(cluster: Cluster, first: int, act: Callable[[], None]) -> int:
    """Do something while requests run, all of which must be answered."""
    load = Load(cluster, first)
    try:
        load.wait_for_more(10)
        act()
        load.wait_for_more(30)
    finally:
        load.stop()
    return load.num_done


def test_an_encoder_that_is_killed_under_load_costs_no_request(cluster: Cluster) -> None:
    killed = cluster.replicas("Encoder")[0]
    assert under_load(cluster, 10_000, killed.kill) >= 40
    wait_for(lambda: cluster.num_running("Encoder") == 2)
    assert killed.pid not in {process.pid for process in cluster.replicas("Encoder")}


def test_numbers_of_replicas_change_under_load(cluster: Cluster) -> None:
    def scale() -> None:
        cluster.scale({"LanguageModel": 2, "Encoder": 1})
        cluster.scale({"LanguageModel": 1, "Encoder": 2})

    under_load(cluster, 20_000, scale)


def test_a_language_model_that_is_killed_ends_its_streams_with_an_error(cluster: Cluster) -> None:
    client = cluster.client()
    (killed,) = cluster.replicas("LanguageModel")
    chunks = iter(ask(client, text_part("Hello"), stream=True, **LONG))
    next(chunks)
    killed.send_signal(signal.SIGKILL)
    with pytest.raises(openai.APIError, match="has died") as caught:
        for _ in chunks:
            pass
    assert caught.value.code == "replica_failed"
    assert ask(client, text_part("Hello")).choices  # waits for the new replica
    (replica,) = cluster.replicas("LanguageModel")
    assert replica.pid != killed.pid


@pytest.mark.ends_cluster
def test_the_cluster_ends_with_its_command_and_leaves_nothing(started: Cluster) -> None:
    import ray

    processes = started.processes()
    assert len(processes) > 4
    ray.shutdown()
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait(TIMEOUT_S) == 0, started.log.read_text()
    gone, alive = psutil.wait_procs(processes, TIMEOUT_S)
    assert not alive
    assert len(gone) == len(processes)

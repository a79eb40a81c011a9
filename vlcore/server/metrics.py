"""The metrics of ``/metrics``, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vlcore.engines.base import EngineStats
from vlcore.inference.response import Response
from vlcore.vision.stats import EncoderStats

_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The metrics of one server, in a registry of its own.

    Args:
        encoder_stats: Returns the counts of the image encoder.
        engine_stats: Returns the current load of the engine.
        num_requests: Returns the number of requests that hold a permit.
    """

    def __init__(
        self,
        encoder_stats: Callable[[], EncoderStats],
        engine_stats: Callable[[], EngineStats],
        num_requests: Callable[[], int],
    ) -> None:
        self._registry = CollectorRegistry()
        self._outcomes = Counter(
            "vlcore_requests",
            "Chat requests by outcome: ok, disconnected, or the error's code.",
            ["outcome"],
            registry=self._registry,
        )
        self._tokens = Counter(
            "vlcore_tokens",
            "Tokens of prompts (with those of images and videos), of images, of videos, and of "
            "completions.",
            ["kind"],
            registry=self._registry,
        )
        self.time_to_first_token = Histogram(
            "vlcore_time_to_first_token_seconds",
            "Time from a parsed request to the first token of its completion.",
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "vlcore_request_seconds",
            "Time from the admission of a request to its end.",
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._registry.register(_StatsCollector(encoder_stats, engine_stats, num_requests))

    def count_outcome(self, outcome: str) -> None:
        """Count a request that ended."""
        self._outcomes.labels(outcome).inc()

    def count_tokens(
        self, num_prompt: int, num_image: int, num_video: int, num_completion: int
    ) -> None:
        """Count the tokens of a request."""
        self._tokens.labels("prompt").inc(num_prompt)
        self._tokens.labels("image").inc(num_image)
        self._tokens.labels("video").inc(num_video)
        self._tokens.labels("answer").inc(num_completion)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class TokenRecorder:
    """Records the tokens of one request, and the time to the first of its completion.

    The tokens are counted at the end of the context, however the request ends.

    Args:
        metrics: Where they are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started = time.perf_counter()
        self._last: Response | None = None
        self._num_generated: dict[int, int] = {}
        """Number of tokens of each choice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is not None:
            self._metrics.count_tokens(
                self._last.input_token_len,
                self._last.image_token_len,
                self._last.video_token_len,
                self.num_completion_tokens,
            )

    @property
    def num_completion_tokens(self) -> int:
        """Number of tokens generated so far, of all choices."""
        return sum(self._num_generated.values())

    def record(self, delta: Response) -> None:
        """Record the next delta of the completion."""
        if self._last is None:
            self._metrics.time_to_first_token.observe(time.perf_counter() - self._started)
        self._last = delta
        self._num_generated[delta.choice] = delta.generate_token_len


class _StatsCollector(Collector):
    """Exposes the counts that the encoder, the engine and the admission keep themselves."""

    def __init__(
        self,
        encoder_stats: Callable[[], EncoderStats],
        engine_stats: Callable[[], EngineStats],
        num_requests: Callable[[], int],
    ) -> None:
        self._encoder_stats = encoder_stats
        self._engine_stats = engine_stats
        self._num_requests = num_requests

    def collect(self) -> Iterator[Metric]:
        stats = self._encoder_stats()
        yield GaugeMetricFamily(
            "vlcore_active_requests", "Requests that hold a permit.", self._num_requests()
        )
        engine = self._engine_stats()
        yield GaugeMetricFamily(
            "vlcore_answers_running", "Completions in the engine's batch.", engine.num_running
        )
        yield GaugeMetricFamily(
            "vlcore_answers_waiting", "Completions that wait for a batch slot.", engine.num_waiting
        )
        yield GaugeMetricFamily(
            "vlcore_kept_tokens",
            "Tokens whose keys and values are kept for later prompts.",
            engine.num_kept_tokens,
        )
        for name, text, value in (
            (
                "engine_prompt_tokens",
                "Prompt tokens that the engine computed or reused, if it counts them.",
                engine.num_prompt_tokens,
            ),
            (
                "engine_cached_tokens",
                "Prompt tokens whose keys and values were reused.",
                engine.num_cached_tokens,
            ),
            ("images", "Images requested.", stats.num_images),
            ("image_cache_hits", "Images whose embeddings were cached.", stats.num_cache_hits),
            ("images_encoded", "Images encoded by the vision model.", stats.num_encoded),
            ("image_failures", "Images that could not be encoded.", stats.num_failures),
            ("images_cancelled", "Images whose requests were cancelled.", stats.num_cancelled),
            ("vision_forwards", "Forward passes of the vision model.", stats.num_forwards),
            ("vision_seconds", "Time spent in the vision model.", stats.forward_s),
        ):
            yield CounterMetricFamily(f"vlcore_{name}", text, value)
        yield GaugeMetricFamily(
            "vlcore_images_waiting", "Images that wait for the device.", stats.num_waiting
        )
        yield GaugeMetricFamily(
            "vlcore_image_cache_bytes", "Size of the cached embeddings.", stats.cached_bytes
        )
        batches = CounterMetricFamily(
            "vlcore_vision_batches",
            "Forward passes of the vision model by number of images.",
            labels=["images"],
        )
        for size, number in stats.batch_sizes.items():
            batches.add_metric([str(size)], number)
        yield batches

"""What ``/metrics`` tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vlcore.engines.base import EngineStats
from vlcore.vision.stats import EncoderStats

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts of one server, in a registry of its own.

    Args:
        encoder_stats: what the image encoder did so far.
        engine_stats: what the engine has to do now.
        num_requests: how many requests hold a place now.
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
            "Chat requests by how they ended: ok, disconnected, or the error's code.",
            ["outcome"],
            registry=self._registry,
        )
        self._tokens = Counter(
            "vlcore_tokens",
            "Tokens: of prompts (rows of pictures among them), of pictures, of answers.",
            ["kind"],
            registry=self._registry,
        )
        self.time_to_first_token = Histogram(
            "vlcore_time_to_first_token_seconds",
            "From the reading of a request to the first piece of its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "vlcore_request_seconds",
            "From a request's place to its end.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_Now(encoder_stats, engine_stats, num_requests))

    def count_outcome(self, outcome: str) -> None:
        """Count a request that ended."""
        self._outcomes.labels(outcome).inc()

    def count_tokens(self, num_prompt: int, num_image: int, num_answer: int) -> None:
        """Count the tokens of a request."""
        self._tokens.labels("prompt").inc(num_prompt)
        self._tokens.labels("image").inc(num_image)
        self._tokens.labels("answer").inc(num_answer)

    def text(self) -> bytes:
        """Write them down in Prometheus' own format."""
        return generate_latest(self._registry)


class _Now(Collector):
    """Reads what others count."""

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
            "vlcore_active_requests", "Requests that hold a place now.", self._num_requests()
        )
        engine = self._engine_stats()
        yield GaugeMetricFamily(
            "vlcore_answers_running", "Answers in the engine's batch now.", engine.num_running
        )
        yield GaugeMetricFamily(
            "vlcore_answers_waiting", "Answers that wait for a place in it.", engine.num_waiting
        )
        for name, text, value in (
            ("images", "Pictures asked for.", stats.num_images),
            ("image_cache_hits", "Pictures whose rows were there.", stats.num_cache_hits),
            ("images_encoded", "Pictures that went through the model.", stats.num_encoded),
            ("image_failures", "Pictures without rows.", stats.num_failures),
            ("images_cancelled", "Pictures nobody wanted any more.", stats.num_cancelled),
            ("vision_forwards", "Calls of the vision model.", stats.num_forwards),
            ("vision_seconds", "Time in the vision model.", stats.forward_s),
        ):
            yield CounterMetricFamily(f"vlcore_{name}", text, value)
        yield GaugeMetricFamily(
            "vlcore_images_waiting", "Pictures that wait for the device.", stats.num_waiting
        )
        yield GaugeMetricFamily(
            "vlcore_image_cache_bytes", "What the kept rows take.", stats.cached_bytes
        )
        sizes = CounterMetricFamily(
            "vlcore_vision_batches", "Calls of the vision model by pictures.", labels=["images"]
        )
        for size, number in stats.batch_sizes.items():
            sizes.add_metric([str(size)], number)
        yield sizes

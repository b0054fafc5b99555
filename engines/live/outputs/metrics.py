"""Metrics for Prometheus: frames, scored and dropped frames, reconnects, latency, batch sizes, the engine's time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from flowless.engines.live.outputs.http_server import Request
from flowless.engines.live.records import Answer, SourceStatus

if TYPE_CHECKING:
    from prometheus_client.core import Metric

#: Upper ends of the latencies' and of the engine's histogram, in seconds.
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)
_BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
_NAME = "flowless"


class Metrics:
    """Counts what a watcher does. Any thread may scrape.

    Args:
        statuses: Returns the state of every source now.

    Raises:
        ModuleNotFoundError: prometheus_client is not installed.
    """

    def __init__(self, statuses: Callable[[], Sequence[SourceStatus]]) -> None:
        from prometheus_client import CollectorRegistry, Histogram

        self._registry = CollectorRegistry()
        self._registry.register(_Sources(statuses))
        self._latency = Histogram(
            f"{_NAME}_latency_seconds", "From a decoded frame to its scores.", ["source"], registry=self._registry, buckets=_SECONDS
        )
        self._batch = Histogram(f"{_NAME}_batch_size", "Sources scored in one batch.", registry=self._registry, buckets=_BATCHES)
        self._engine = Histogram(f"{_NAME}_engine_seconds", "The engine's time for a batch.", registry=self._registry, buckets=_SECONDS)

    def see(self, answer: Answer) -> None:
        """Count a scored frame."""
        self._latency.labels(answer.source).observe(answer.latency)

    def step(self, batch: int, seconds: float) -> None:
        """Count a batch that the engine scored."""
        self._batch.observe(batch)
        self._engine.observe(seconds)

    def send(self, request: Request) -> None:
        """Send all metrics in the format that the client accepts."""
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        request.reply(encode(self._registry), content_type)


class _Sources:
    """Reads the counters of the sources when they are scraped."""

    def __init__(self, statuses: Callable[[], Sequence[SourceStatus]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all sources."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        statuses = self._statuses()
        counters = (
            ("frames", "Frames decoded.", lambda status: status.frames),
            ("scored_frames", "Frames scored.", lambda status: status.answered),
            ("dropped_frames", "Frames not scored, because a newer one came first.", lambda status: status.dropped),
            ("reconnects", "How often it was opened again.", lambda status: status.reconnects),
        )
        for name, text, value in counters:
            family = CounterMetricFamily(f"{_NAME}_{name}", text, labels=["source"])
            for status in statuses:
                family.add_metric([status.name], value(status))
            yield family
        up = GaugeMetricFamily(f"{_NAME}_source_up", "1 while frames arrive.", labels=["source"])
        for status in statuses:
            up.add_metric([status.name], status.state == "running")
        yield up

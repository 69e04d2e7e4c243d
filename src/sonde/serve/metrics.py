"""What Prometheus reads at /metrics.

Metrics   counters and gauges of one service
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Edges of latency: from a lexical model on one text to the longest answer that is waited for."""

TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Edges of the texts that one call reads together."""


WATCHED = {
    "queue_texts": "Texts that wait or are read.",
    "queue_characters": "Characters of these.",
    "requests_in_flight": "Requests that are not answered yet.",
}
"""Gauges, asked for when somebody looks."""


class Metrics:
    """Counters and gauges of one service; labels come from fixed sets, so that their number is bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        ProcessCollector(registry=own)
        PlatformCollector(registry=own)
        self.requests = Counter("sonde_requests", "Requests answered.", ["method", "path", "status"], registry=own)
        self.seconds = Histogram("sonde_request_seconds", "Time to answer.", ["path"], buckets=SECONDS, registry=own)
        self.texts = Counter("sonde_texts", "Texts classified or explained.", ["model", "task"], registry=own)
        self.truncated = Counter("sonde_truncated_texts", "Texts longer than the model reads.", ["model"], registry=own)
        self.waited = Histogram("sonde_wait_seconds", "Time in the queue.", buckets=SECONDS, registry=own)
        self.called = Histogram("sonde_call_texts", "Texts that one call read.", ["model"], buckets=TEXTS, registry=own)
        self.busy = Counter("sonde_call_seconds", "Time in which models read.", ["model"], registry=own)
        self.refused = Counter("sonde_refused_requests", "Requests that found the queue full.", registry=own)
        self.reloads = Counter("sonde_reloads", "Reloads of models.", ["model", "outcome"], registry=own)
        self._gauges = {name: Gauge(f"sonde_{name}", text, registry=own) for name, text in WATCHED.items()}

    def watch(self, name: str, read: Callable[[], float]) -> None:
        """Ask `read` for a gauge whenever somebody looks."""
        self._gauges[name].set_function(read)

    def page(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)

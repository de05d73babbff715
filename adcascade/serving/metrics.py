"""Prometheus metrics of one server, in a registry of its own so that several servers can live in one process."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class CallMetrics:
    """Counts and times the calls of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter(
            "adcascade_calls_total",
            "Calls answered, by method and status.",
            ["method", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "adcascade_call_seconds",
            "Seconds from the start of a call to its answer.",
            ["method"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.connections_closed = Counter(
            "adcascade_connections_closed_total",
            "Connections that were longest without a call and gave way to others.",
            registry=registry,
        )
        self.in_flight = Gauge("adcascade_calls_in_flight", "Calls worked on or waiting now.", registry=registry)


def new_registry() -> CollectorRegistry:
    """A registry with the process's own memory, CPU and garbage collection metrics."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry

"""What the service counts about itself, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from builderd.domain.builders import Status
from builderd.domain.previews import PreviewActivity
from builderd.services.application import Application

#: In seconds: from a look-up to the cold installation of large dependencies.
BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
#: Whatever a client makes up as a method counts as one.
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class Meter:
    """Counts requests from start to end; everything else is looked up when it is asked for."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "builderd_http_requests", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "builderd_http_request_duration_seconds",
            "From the request's head to the end of the answer.",
            ("method", "route"),
            buckets=BUCKETS,
            registry=self._registry,
        )

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request more. ``route`` is empty for paths that do not exist."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    async def render(self, application: Application) -> bytes:
        """Everything in Prometheus' text format 0.0.4."""
        registry = CollectorRegistry()
        registry.register(_Snapshot(*await _look(application)))
        return generate_latest(self._registry) + generate_latest(registry)


async def _look(
    application: Application,
) -> tuple[Mapping[Status, int], Mapping[str, PreviewActivity], bool]:
    builders = await application.store.read(lambda uow: uow.builders.count_by_status())
    activity = await application.previews.activity() if await application.previews.ready() else {}
    return builders, activity, application.engine.readiness().ready


@dataclass(frozen=True, eq=False)
class _Snapshot(Collector):
    builders: Mapping[Status, int]
    activity: Mapping[str, PreviewActivity]
    engine_ready: bool

    def collect(self) -> Iterator[Metric]:
        builders = GaugeMetricFamily("builderd_builders", "Builders that are not deleted.", labels=["status"])
        for status in Status:
            if status is not Status.DELETED:
                builders.add_metric([status.value], self.builders.get(status, 0))
        yield builders
        yield GaugeMetricFamily(
            "builderd_engine_ready", "1 when sandboxes can be started.", value=float(self.engine_ready)
        )
        yield from self._previews()

    def _previews(self) -> Iterator[Metric]:
        counters = {
            "requests": CounterMetricFamily("builderd_preview_requests", "Requests to a preview.", labels=["host"]),
            "failures": CounterMetricFamily("builderd_preview_failures", "Of these, answered 5xx.", labels=["host"]),
            "bytes_in": CounterMetricFamily("builderd_preview_received_bytes", "From visitors.", labels=["host"]),
            "bytes_out": CounterMetricFamily("builderd_preview_sent_bytes", "To visitors.", labels=["host"]),
        }
        connections = GaugeMetricFamily("builderd_preview_connections", "Open now.", labels=["host"])
        for host, seen in self.activity.items():
            connections.add_metric([host], seen.open_connections)
            for name, family in counters.items():
                family.add_metric([host], getattr(seen, name))
        yield from counters.values()
        yield connections

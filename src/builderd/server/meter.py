"""Metrics of the service, for Prometheus."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, cast

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from builderd.application import Application
from builderd.backups.model import BackupStatus
from builderd.backups.service import BackupHealth, health
from builderd.builders.model import Status
from builderd.core.errors import EngineUnavailable
from builderd.core.members import MemberReport
from builderd.domains.service import certificate_ends, own_certificates
from builderd.engine.port import Engine
from builderd.metrics.model import UsageSample, response_counts
from builderd.previews.model import RESPONSE_BOUNDS, STATUS_CLASSES, PreviewActivity

#: Histogram buckets in seconds: from a look-up to the cold installation of large dependencies.
BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
#: Most hosts, and most builders, that have series of their own: each series costs storage in Prometheus.
MAX_SERIES = 2_000
#: Methods with a label of their own; all others are counted together, since clients can invent any.
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
        """Count a request. ``route`` is empty for paths that do not exist."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    async def render(self, application: Application) -> bytes:
        """Return all metrics in Prometheus' text format 0.0.4."""
        families = [family async for family in _look(application)]
        return generate_latest(self._registry) + generate_latest(cast("CollectorRegistry", _Collected(families)))


class _Collected(NamedTuple):
    """Metrics that were looked up, as the library takes them."""

    families: Sequence[Metric]

    def collect(self) -> Sequence[Metric]:
        return self.families


async def _look(application: Application) -> AsyncIterator[Metric]:
    builders = await application.store.read(lambda uow: uow.builders.count_by_status())
    counts = {status.value: builders.get(status, 0) for status in Status if status is not Status.DELETED}
    yield _gauges("builderd_builders", "Builders that are not deleted.", "status", counts)
    now, ready = application.clock.now(), application.engine.readiness().ready
    yield _gauge("builderd_engine_ready", "1 when sandboxes can be started.", ready)
    previews_ready = await application.previews.ready()
    yield _gauge("builderd_previews_ready", "1 when the proxy of the previews answers.", previews_ready)
    ends, own = await application.store.read(
        lambda uow: (certificate_ends(uow, application), own_certificates(uow, application.domain_rules))
    )
    days = {host: (end - now).total_seconds() / 86_400 for host, end in ends[:MAX_SERIES]}
    text = "Days left of a certificate: of domains, of previews, of public_url."
    yield _gauges("builderd_domain_certificate_days", text, "host", days)
    text = "Failed tries in a row to get a certificate: of previews, of public_url."
    failures = {one.label: one.failures for one in own}
    yield _gauges("builderd_own_certificate_failures", text, "host", failures)
    code = await application.bundles.space()
    yield _gauge("builderd_code_stored_bytes", "Bytes of the stored code of all builders.", code.used)
    yield _gauge("builderd_code_free_bytes", "Bytes that are free for more code.", max(code.free, 0))
    groups = [
        _cluster(await _members(application.engine) if ready else ()),
        _kept(await application.store.read(lambda uow: health(uow, now))),
        _previews(await application.previews.activity() if previews_ready else {}),
        _used(list(application.usage.values())[:MAX_SERIES]),
    ]
    for group in groups:
        for family in group:
            yield family


async def _members(engine: Engine) -> Sequence[tuple[MemberReport, int]]:
    """Return the members of the cluster, each with the number of its disks; none on a single machine."""
    try:
        members = (await engine.members())[:MAX_SERIES]
        disks = Counts((await engine.disk_members()).values()) if members else Counts[str]()
    except EngineUnavailable:
        return ()
    return [(member, disks[member.name]) for member in members]


def _cluster(members: Sequence[tuple[MemberReport, int]]) -> Iterator[Metric]:
    """Yield the state of each member of a cluster."""
    if not members:
        return
    online = {member.name: member.away_since is None for member, _ in members}
    yield _gauges("builderd_member_online", "1 when the member answers.", "member", online)
    leaving = {member.name: member.evacuating for member, _ in members}
    yield _gauges("builderd_member_evacuating", "1 when it is evacuated.", "member", leaving)
    disks = {member.name: count for member, count in members}
    yield _gauges("builderd_member_disks", "Disks on the member.", "member", disks)
    capacity = GaugeMetricFamily(
        "builderd_member_capacity", "vCPU, and GB of memory and disk.", labels=["member", "resource"]
    )
    for member, _ in members:
        if has := member.capacity:
            for name, value in (("cpu", has.cpu), ("memory", has.memory), ("disk", has.disk)):
                capacity.add_metric([member.name, name], value)
    yield capacity


def _kept(backups: BackupHealth) -> Iterator[Metric]:
    counts = {status.value: backups.by_status.get(status, 0) for status in BackupStatus}
    text = "Backups that are kept; those that failed in the last week."
    yield _gauges("builderd_backups", text, "status", counts)
    for name, text, value in (
        ("failing_builders", "Builders that want backups and whose last one failed.", backups.failing),
        ("behind_seconds", "Age of the oldest of the last good backups.", backups.behind_seconds),
        ("unproven", "Backups that lack data or failed their drill.", backups.unproven),
        ("damaged_repositories", "Repositories that are damaged and not repaired yet.", backups.damaged),
    ):
        yield _gauge(f"builderd_backup_{name}", text, value)


def _previews(activity: Mapping[str, PreviewActivity]) -> Iterator[Metric]:
    counters = {
        "requests": CounterMetricFamily("builderd_preview_requests", "Requests to a preview.", labels=["host"]),
        "failures": CounterMetricFamily("builderd_preview_failures", "Of these, answered 5xx.", labels=["host"]),
        "bytes_in": CounterMetricFamily("builderd_preview_received_bytes", "From visitors.", labels=["host"]),
        "bytes_out": CounterMetricFamily("builderd_preview_sent_bytes", "To visitors.", labels=["host"]),
    }
    connections = GaugeMetricFamily("builderd_preview_connections", "Open now.", labels=["host"])
    answers = CounterMetricFamily("builderd_preview_answers", "By the class of the status.", labels=["host", "class"])
    times = HistogramMetricFamily(
        "builderd_preview_response_seconds", "Time until the head of an app's answer.", labels=["host", "class"]
    )
    # Some of the others have no visitors any more.
    busiest = sorted(activity.items(), key=lambda one: one[1].requests, reverse=True)[:MAX_SERIES]
    for host, seen in busiest:
        for cls in STATUS_CLASSES:
            answers.add_metric([host, cls], getattr(seen, f"answers_{cls}"))
        connections.add_metric([host], seen.open_connections)
        for name, family in counters.items():
            family.add_metric([host], getattr(seen, name))
        for cls in STATUS_CLASSES:
            if any(counts := response_counts(seen, cls)):
                bounds = [*(str(bound / 1000) for bound in RESPONSE_BOUNDS), "+Inf"]
                times.add_metric([host, cls], list(zip(bounds, accumulate(counts), strict=True)), None)
    yield from (*counters.values(), answers, times)
    yield connections


def _used(readings: Sequence[UsageSample]) -> Iterator[Metric]:
    """Yield the usage of each running sandbox; counters restart with each new sandbox."""
    for kind, name, text, field in (
        (CounterMetricFamily, "cpu_seconds", "CPU time of a sandbox.", "cpu_seconds"),
        (GaugeMetricFamily, "memory_bytes", "Memory in use.", "memory_bytes"),
        (GaugeMetricFamily, "disk_bytes", "Disk in use.", "disk_bytes"),
        (CounterMetricFamily, "received_bytes", "Over its network.", "network_in_bytes"),
        (CounterMetricFamily, "sent_bytes", "Over its network.", "network_out_bytes"),
        (GaugeMetricFamily, "processes", "Processes now.", "processes"),
    ):
        family = kind(f"builderd_builder_{name}", text, labels=["builder", "name", "tenant"])
        for reading in readings:
            watched = reading.watched
            family.add_metric([watched.builder_id, watched.name, watched.tenant], getattr(reading.used, field))
        yield family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family

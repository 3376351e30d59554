"""A builder: the frame of its pages, its overview, and what its buttons do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial, reduce
from typing import Any

from starlette.responses import Response

from builderd.domain.backups import Backup, BackupStatus
from builderd.domain.builders import Builder
from builderd.domain.errors import BadRequest, NotFound
from builderd.domain.metrics import Usage, add, resample, response_seconds, start_of
from builderd.domain.prices import Billing
from builderd.domain.qa import Outcome, QaReport
from builderd.domain.reviews import Report, Severity, Verdict
from builderd.domain.tokens import Scope
from builderd.domain.versions import Version
from builderd.services import backups, builders, caps, qa, verdicts
from builderd.store import UnitOfWork
from builderd.store.events import EventQuery
from builderd.web.charts import share
from builderd.web.states import State, state_of
from builderd.web.visits import Visit, page, see_other

SHOWN_EVENTS = 8
STEP, STEPS = timedelta(minutes=30), 48
#: Width of the chart of requests, in its own units.
CHART_WIDTH, CHART_HEIGHT = 600, 150
COMMANDS = {"start": builders.start, "stop": builders.stop, "restart": builders.restart}
DONE = {"start": "started", "stop": "stopped", "restart": "restarted"}


@dataclass(frozen=True, slots=True)
class BuilderFrame:
    """Content of all pages of a builder: itself, its state, and how many findings its tabs count."""

    builder: Builder
    version: Version
    url: str
    state: State
    needs_restart: bool
    review_open: int
    review_warnings: int
    qa_failed: int
    qa_warnings: int


def frame_of(uow: UnitOfWork, visit: Visit) -> BuilderFrame:
    """Return the frame of the builder that the path names. Raises ``NotFound``."""
    builder = visit.builder(uow)
    view = builders.view(uow, visit.application, builder, visit.now)
    found = review_of(uow, visit, builder)
    report = qa.get(uow, visit.token.tenant_id, builder.id).report
    checks = (*report.gate, *report.checks)
    return BuilderFrame(
        builder=builder,
        version=view.version,
        url=view.preview_url,
        state=state_of(builder, visit.application.limits),
        needs_restart=view.needs_restart,
        review_open=len(found[1].open) + found[1].untold if found else 0,
        review_warnings=sum(one.severity is Severity.WARN for one in found[0].findings) if found else 0,
        qa_failed=sum(one.outcome is Outcome.FAILED for one in checks),
        qa_warnings=sum(one.outcome is Outcome.WARNING for one in checks),
    )


def review_of(uow: UnitOfWork, visit: Visit, builder: Builder) -> tuple[Report, Verdict] | None:
    """Return the review of the current version, or of the last before it that has one; None without any."""
    try:
        view = verdicts.get(uow, visit.token.tenant_id, builder.id, visit.now)
    except NotFound:
        return None
    return view.report, view.verdict


async def builder_page(
    visit: Visit, template: str, tab: str, frame: BuilderFrame, status: int = 200, **values: Any
) -> Response:
    """Render a page of a builder."""
    return await visit.page(template, status, f=frame, b=frame.builder, tab=tab, **values)


@dataclass(frozen=True, slots=True)
class Bar:
    """Requests of half an hour: positions in the chart. ``asleep``: nothing ran."""

    x: float
    height: float
    failed: float
    asleep: bool


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests of a day by half hours."""

    bars: Sequence[Bar]
    most: int
    total: int
    failed: int
    begin: datetime
    mark: float | None
    times: Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Gauge:
    """A resource in use."""

    name: str
    text: str
    share: float

    @property
    def high(self) -> bool:
        return self.share >= 80


@dataclass(frozen=True, slots=True)
class Overview:
    frame: BuilderFrame
    report: QaReport
    requests: Requests
    events: Sequence[Any]
    cap: caps.CapView
    backup: Backup | None


async def show_overview(visit: Visit) -> Response:
    """Show what the builder is, does, costs, and what happened to it."""
    found = await visit.read(lambda uow: _overview(uow, visit))
    application, resources = visit.application, found.frame.version.settings.resources
    rates = [
        (name, application.prices.hourly_rate(resources, billing))
        for name, billing in (("awake", Billing.RUNNING), ("frozen", Billing.FROZEN), ("stopped", Billing.STOPPED))
    ]
    return await builder_page(
        visit,
        "overview.html",
        "",
        found.frame,
        report=found.report,
        requests=found.requests,
        events=found.events,
        cap=found.cap,
        rates=rates,
        gauges=_gauges(visit, found.frame),
        backup=found.backup,
        projected=_projected(found.cap, visit.now),
    )


def _overview(uow: UnitOfWork, visit: Visit) -> Overview:
    frame = frame_of(uow, visit)
    builder, tenant = frame.builder, visit.token.tenant_id
    events, _ = uow.events.page(tenant, EventQuery(builder.id), page=1, per_page=SHOWN_EVENTS)
    taken = backups.of_builder(uow, tenant, builder.id, visit.now)
    return Overview(
        frame,
        qa.get(uow, tenant, builder.id).report,
        _requests(uow, visit, frame.version, builder),
        events,
        caps.view_of_builder(uow, visit.application, builder, visit.now),
        next((one for one in taken if one.status is BackupStatus.DONE), None),
    )


def _requests(uow: UnitOfWork, visit: Visit, version: Version, builder: Builder) -> Requests:
    begin = start_of(visit.now, STEP) - (STEPS - 1) * STEP
    steps = [usage for _, usage in resample(uow.metrics.of_builder(builder.id, begin), begin, STEP, STEPS)]
    most = max((usage.requests for usage in steps), default=0)
    width = CHART_WIDTH / STEPS
    whole = reduce(add, steps)
    times = [(name, response_seconds(whole, part)) for name, part in (("p50", 0.5), ("p99", 0.99))]
    since = (version.created_at - begin) / (STEP * STEPS)
    return Requests(
        [_bar(index * width, usage, most or 1) for index, usage in enumerate(steps)],
        most,
        sum(usage.requests for usage in steps),
        sum(usage.answers_5xx for usage in steps),
        begin,
        round(since * CHART_WIDTH, 1) if since > 0 else None,
        [(name, seconds) for name, seconds in times if seconds is not None],
    )


def _bar(x: float, usage: Usage, most: int) -> Bar:
    def tall(count: int) -> float:
        return round(CHART_HEIGHT * count / most, 1)

    return Bar(round(x, 1), tall(usage.requests), tall(usage.answers_5xx), usage.seconds == 0)


def _gauges(visit: Visit, frame: BuilderFrame) -> Sequence[Gauge]:
    reading, limits = visit.application.usage.of_builder(frame.builder.id), frame.version.settings.resources
    if reading is None:
        return ()
    cpu, gb = reading.since_previous.cpu or 0.0, 1 << 30
    memory, disk = reading.used.memory_bytes, reading.used.disk_bytes
    return (
        Gauge("CPU", f"{cpu:.2f} of {limits.cpu:g} vCPU", share(cpu, limits.cpu)),
        Gauge("Memory", f"{memory / gb:.2f} of {limits.memory:g} GB", share(memory, limits.memory_bytes)),
        Gauge("Disk", f"{disk / gb:.2f} of {limits.disk:g} GB", share(disk, limits.disk_bytes)),
    )


def _projected(cap: caps.CapView, now: datetime) -> float:
    """Return what the month will have cost at its pace so far."""
    begin = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    passed = (now - begin) / (cap.resets_at - begin)
    return float(cap.spent) / passed if passed > 0 else float(cap.spent)


async def command(visit: Visit) -> Response:
    """Start, stop or restart the builder."""
    doing = visit.request.path_params["command"]
    if doing not in COMMANDS:
        raise BadRequest(f"There is no command {doing!r}.")
    builder, application = await visit.find(), visit.application
    await application.commit(lambda uow: COMMANDS[doing](uow, application, visit.caller, builder.id, visit.now))
    return see_other(f"/builders/{builder.name}", {"done": DONE[doing]})


async def delete(visit: Visit) -> Response:
    """Delete the builder, once its name was typed."""
    form, builder, application = await visit.form(), await visit.find(), visit.application
    if form.text("confirm") != builder.name:
        raise BadRequest(f"Type the name {builder.name} to delete the builder.")
    doing = partial(backups.delete_builder, purge=form.text("purge") == "yes")
    await application.commit(lambda uow: doing(uow, application, visit.caller, builder.id, visit.now))
    return see_other("/builders", {"done": "deleted"})


async def screenshot(visit: Visit) -> Response:
    """Return a screenshot that QA took."""
    builder = await visit.find()
    query, name = visit.request.query_params, visit.request.path_params["picture"]
    number = int(query["version"]) if query.get("version", "").isdecimal() else None
    if name not in ("desktop", "phone"):
        raise NotFound("Screenshots are named desktop and phone.")
    found = await visit.read(lambda uow: qa.screenshot(uow, visit.token.tenant_id, builder.id, name, number))
    return Response(found.png, 200, {"Cache-Control": "private, max-age=300"}, "image/png")


ROUTES = [
    page("/builders/{name}", show_overview),
    page("/builders/{name}/do/{command}", command, post=True, scope=Scope.WRITE),
    page("/builders/{name}/delete", delete, post=True, scope=Scope.WRITE),
    page("/builders/{name}/screenshots/{picture}", screenshot),
]

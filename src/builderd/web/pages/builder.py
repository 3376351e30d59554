"""A builder: the frame of its pages, its overview, what its buttons do; its backups, review and QA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from functools import partial, reduce
from typing import Any, TypeVar

from starlette.responses import Response

from builderd.backups import restores
from builderd.backups import service as backups
from builderd.backups.model import BackupStatus
from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.builders.processes import ProcessView
from builderd.code import service as bundles
from builderd.core.errors import BadRequest, NotFound
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.store import EventQuery
from builderd.metrics.model import add, resample, response_seconds, start_of
from builderd.money import caps
from builderd.money.model import Billing, Spent
from builderd.qa import service as qa
from builderd.qa.model import Outcome
from builderd.review import verdicts
from builderd.review.model import Finding, Severity
from builderd.review.verdicts import NewAcceptance, ReviewView
from builderd.tokens.model import Scope
from builderd.versions.model import Version
from builderd.web.shown import State, is_reachable, share, state_of
from builderd.web.visits import Visit, number_in, page, see_other

T = TypeVar("T")

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
    is_reachable: bool
    processes: Sequence[ProcessView]
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
        is_reachable=builder.job_type.has_preview and is_reachable(builder.status),
        processes=view.processes,
        review_open=len(found.verdict.open) + found.verdict.untold if found else 0,
        review_warnings=sum(one.severity is Severity.WARN for one in found.report.findings) if found else 0,
        qa_failed=sum(one.outcome is Outcome.FAILED for one in checks),
        qa_warnings=sum(one.outcome is Outcome.WARNING for one in checks),
    )


async def read_frame(visit: Visit, work: Callable[[UnitOfWork, BuilderFrame], T]) -> tuple[BuilderFrame, T]:
    """Return the frame of the builder that the path names, and what ``work`` reads with it. Raises ``NotFound``."""

    def look(uow: UnitOfWork) -> tuple[BuilderFrame, T]:
        frame = frame_of(uow, visit)
        return frame, work(uow, frame)

    return await visit.read(look)


def review_of(uow: UnitOfWork, visit: Visit, builder: Builder, number: int | None = None) -> ReviewView | None:
    """Return the review of a version, by default the current one or the last before it that has one."""
    try:
        return verdicts.get(uow, visit.token.tenant_id, builder.id, visit.now, number)
    except NotFound:
        return None


async def builder_page(
    visit: Visit, template: str, tab: str, frame: BuilderFrame, status: int = 200, **values: Any
) -> Response:
    """Render a page of a builder."""
    return await visit.page(template, status, f=frame, b=frame.builder, tab=tab, **values)


@page("/builders/{name}")
async def show_overview(visit: Visit) -> Response:
    """Show what the builder is, does, costs, and what happened to it."""
    frame, found = await read_frame(visit, lambda uow, frame: _overview(uow, visit, frame))
    resources = frame.version.settings.resources.times(1 + frame.builder.further)
    rates = [
        (name, visit.application.prices.hourly_rate(resources, billing))
        for name, billing in (("awake", Billing.RUNNING), ("frozen", Billing.FROZEN), ("stopped", Billing.STOPPED))
    ]
    gauges = _gauges(visit, frame)
    return await builder_page(visit, "overview.html", "", frame, **found, rates=rates, gauges=gauges)


def _overview(uow: UnitOfWork, visit: Visit, frame: BuilderFrame) -> dict[str, Any]:
    builder, tenant = frame.builder, visit.token.tenant_id
    events, _ = uow.events.page(tenant, EventQuery(builder.id), page=1, per_page=SHOWN_EVENTS)
    taken = backups.of_builder(uow, tenant, builder.id, visit.now)
    cap = caps.view_of_builder(uow, visit.application, builder, visit.now)
    hourly = uow.ledger.rates_of_builders([builder.id]).get(builder.id, Decimal(0))
    return {
        "report": qa.get(uow, tenant, builder.id).report,
        "requests": _requests(uow, visit, frame.version, builder),
        "events": events,
        "cap": cap,
        "projected": float(Spent(cap.spent, hourly).forecast(visit.now)),
        "backup": next((one for one in taken if one.status is BackupStatus.DONE), None),
    }


def _requests(uow: UnitOfWork, visit: Visit, version: Version, builder: Builder) -> dict[str, Any]:
    """Return the requests of a day by half hours, with their bars in the chart."""
    begin = start_of(visit.now, STEP) - (STEPS - 1) * STEP
    steps = [usage for _, usage in resample(uow.metrics.of_builder(builder.id, begin), begin, STEP, STEPS)]
    most = max((usage.requests for usage in steps), default=0)
    whole = reduce(add, steps)
    times = [(name, response_seconds(whole, part)) for name, part in (("p50", 0.5), ("p99", 0.99))]
    since = (version.created_at - begin) / (STEP * STEPS)
    return {
        "bars": [
            {
                "x": round(index * CHART_WIDTH / STEPS, 1),
                "height": round(CHART_HEIGHT * usage.requests / (most or 1), 1),
                "failed": round(CHART_HEIGHT * usage.answers_5xx / (most or 1), 1),
                "asleep": usage.seconds == 0,
            }
            for index, usage in enumerate(steps)
        ],
        "most": most,
        "total": sum(usage.requests for usage in steps),
        "failed": sum(usage.answers_5xx for usage in steps),
        "begin": begin,
        "mark": round(since * CHART_WIDTH, 1) if since > 0 else None,
        "times": [(name, seconds) for name, seconds in times if seconds is not None],
    }


def _gauges(visit: Visit, frame: BuilderFrame) -> Sequence[dict[str, Any]]:
    """Return the resources in use; none before they were measured."""
    reading = visit.application.usage.get(frame.builder.id)
    limits = frame.version.settings.resources.times(1 + frame.builder.further)
    if reading is None:
        return ()
    cpu, gb = reading.since_previous.cpu or 0.0, 1 << 30
    memory, disk = reading.used.memory_bytes, reading.used.disk_bytes
    rows = (
        ("CPU", f"{cpu:.2f} of {limits.cpu:g} vCPU", share(cpu, limits.cpu)),
        ("Memory", f"{memory / gb:.2f} of {limits.memory:g} GB", share(memory, limits.memory_bytes)),
        ("Disk", f"{disk / gb:.2f} of {limits.disk:g} GB", share(disk, limits.disk_bytes)),
    )
    return [{"name": name, "text": text, "share": part, "high": part >= 80} for name, text, part in rows]


@page("/builders/{name}/do/{command}", post=True, scope=Scope.WRITE)
async def command(visit: Visit) -> Response:
    """Start, stop or restart the builder."""
    doing = visit.request.path_params["command"]
    if doing not in COMMANDS:
        raise BadRequest(f"There is no command {doing!r}.")
    builder, application = await visit.find(), visit.application
    await application.commit(lambda uow: COMMANDS[doing](uow, application, visit.caller, builder.id, visit.now))
    return see_other(f"/builders/{builder.name}", done=DONE[doing])


@page("/builders/{name}/delete", post=True, scope=Scope.WRITE)
async def delete(visit: Visit) -> Response:
    """Delete the builder, once its name was typed."""
    form, builder, application = await visit.form(), await visit.find(), visit.application
    if form.get("confirm", "") != builder.name:
        raise BadRequest(f"Type the name {builder.name} to delete the builder.")
    doing = partial(backups.delete_builder, purge=form.get("purge", "") == "yes")
    await application.commit(lambda uow: doing(uow, application, visit.caller, builder.id, visit.now))
    return see_other("/builders", done="deleted")


@page("/builders/{name}/screenshots/{picture}")
async def screenshot(visit: Visit) -> Response:
    """Return a screenshot that QA took."""
    builder = await visit.find()
    query, name = visit.request.query_params, visit.request.path_params["picture"]
    number = number_in(query.get("version"), None)
    if name not in ("desktop", "phone"):
        raise NotFound("Screenshots are named desktop and phone.")
    found = await visit.read(lambda uow: qa.screenshot(uow, visit.token.tenant_id, builder.id, name, number))
    return Response(found.png, 200, {"Cache-Control": "private, max-age=300"}, "image/png")


@page("/builders/{name}/backups")
async def show_backups(visit: Visit) -> Response:
    """Show the backups, and what is being restored."""
    tenant = visit.token.tenant_id

    def look(uow: UnitOfWork, frame: BuilderFrame) -> dict[str, Any]:
        found, key = backups.of_builder(uow, tenant, frame.builder.id, visit.now), uow.backup_keys.get(tenant)
        added = sum(one.added_bytes for one in found if one.status is BackupStatus.DONE)
        restores = uow.restores.open_of(frame.builder.id)
        return {"backups": found, "restores": restores, "damage": key.fault if key else "", "added": added}

    frame, found = await read_frame(visit, look)
    return await builder_page(visit, "backups.html", "backups", frame, **found)


@page("/builders/{name}/backups", post=True, scope=Scope.WRITE)
async def change_backups(visit: Visit) -> Response:
    """Take, restore or remove a backup."""
    form, builder = await visit.form(), await visit.find()
    application, action, back = visit.application, form.get("action", ""), f"/builders/{builder.name}/backups"
    if action == "take":
        await backups.ask(application, visit.caller, builder.id)
        return see_other(back, done="backup")
    if action not in ("restore", "restore-as", "backup-removed"):
        raise BadRequest(f"There is no action {action!r} on backups.")

    def work(uow: UnitOfWork) -> None:
        backup = backups.find(uow, visit.token.tenant_id, form.get("backup", ""), visit.now, builder.id)
        if action == "restore":
            restores.request(uow, application, visit.caller, backup, visit.now)
        elif action == "restore-as":
            restores.request_new(uow, application, visit.caller, backup, form.get("as", "").strip(), visit.now)
        else:
            backups.remove(uow, backup)

    await visit.write(work)
    application.signals.change(builder.id)
    return see_other("/builders" if action == "restore-as" else back, done=action)


#: Lines of the code that are shown before and after a finding's, and characters of each.
AROUND, MAX_LINE = 2, 400
#: Files with findings that are opened to show the code around them, and the bytes of one.
MAX_FILES, MAX_BYTES = 40, 1_000_000
#: A block is accepted until a date.
BLOCK_SPAN = timedelta(days=30)


@page("/builders/{name}/review")
async def show_review(visit: Visit) -> Response:
    """Show the findings of a version's review, in their code."""
    number = number_in(visit.request.query_params.get("version"), None)
    frame, view = await read_frame(visit, lambda uow, frame: review_of(uow, visit, frame.builder, number))
    findings = view.report.findings if view else ()
    return await builder_page(
        visit,
        "review.html",
        "review",
        frame,
        view=view,
        code=await _code(visit, view) if view else {},
        open={one.fingerprint for one in view.verdict.open} if view else set(),
        counts={one: sum(found.severity is one for found in findings) for one in Severity} if view else {},
        number=number,
        may_block=visit.allows(Scope.ADMIN),
    )


async def _code(visit: Visit, view: ReviewView) -> dict[str, list[tuple[int, str, bool]]]:
    """Return the lines around each finding by its fingerprint: number, text, and whether it is the finding's.

    The line itself is the report's, in which secrets are masked; so is every other line that has a finding.
    """
    try:
        bundle = await bundles.fetch(visit.application, view.version)
    except Exception:
        return {}
    wanted = {one.path for one in view.report.findings[:MAX_FILES] if one.line}
    texts = {
        file.path: file.content.decode("utf-8", "replace").split("\n")
        for file in bundle.files
        if file.path in wanted and file.size <= MAX_BYTES
    }
    masked = {(one.path, one.line): one.text for one in view.report.findings}
    return {
        one.fingerprint: _around(one, texts[one.path], masked)
        for one in view.report.findings
        if one.path in texts and one.line
    }


def _around(one: Finding, lines: list[str], masked: dict[tuple[str, int], str]) -> list[tuple[int, str, bool]]:
    first, last = max(1, one.line - AROUND), min(len(lines), one.line + AROUND)
    return [
        (number, masked.get((one.path, number), lines[number - 1])[:MAX_LINE], number == one.line)
        for number in range(first, last + 1)
    ]


@page("/builders/{name}/review", post=True, scope=Scope.WRITE)
async def accept_finding(visit: Visit) -> Response:
    """Accept a finding of this builder, with a reason."""
    form, builder = await visit.form(), await visit.find()
    new = NewAcceptance(
        form.get("fingerprint", ""),
        form.get("reason", "").strip(),
        visit.now + BLOCK_SPAN if form.get("block", "") == "yes" else None,
        as_admin=visit.allows(Scope.ADMIN),
    )
    number = await verdicts.accept(visit.application, visit.caller, builder.id, new, visit.now)
    return see_other(f"/builders/{builder.name}/review", version=str(number), done="accepted")


@page("/builders/{name}/qa")
async def show_qa(visit: Visit) -> Response:
    """Show what QA says of a version."""
    number, tenant = number_in(visit.request.query_params.get("version"), None), visit.token.tenant_id
    frame, view = await read_frame(visit, lambda uow, frame: qa.get(uow, tenant, frame.builder.id, number))
    return await builder_page(visit, "qa.html", "qa", frame, view=view, report=view.report)


@page("/builders/{name}/qa", post=True, scope=Scope.WRITE)
async def judge_again(visit: Visit) -> Response:
    """Judge the running app anew, and make a new report."""
    builder = await visit.find()
    await qa.again(visit.application, visit.caller, builder.id)
    return see_other(f"/builders/{builder.name}/qa", done="qa")

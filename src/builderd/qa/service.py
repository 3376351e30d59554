"""QA: the gate that judges an app once it listens, and the report on a copy that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from http import HTTPStatus

from builderd.application import Application
from builderd.builders import service as builders
from builderd.builders.model import Builder, Handover, JobType, Status
from builderd.builders.service import Caller
from builderd.core.errors import InvalidState, NotFound
from builderd.core.ids import BuilderId, SandboxId, TenantId
from builderd.database.unit_of_work import UnitOfWork
from builderd.dependencies.hints import start_hint
from builderd.previews.model import Address
from builderd.qa.model import (
    ALIVE_SECONDS,
    ENDING_SECONDS,
    GATE_PATH,
    GATE_TIMEOUT,
    RETRY_PAUSE,
    RETRY_SECONDS,
    Check,
    Outcome,
    QaReport,
    Screenshot,
    SecondLook,
    Visit,
    check_alive,
    check_answer,
    check_http2,
    check_lived,
    check_memory,
    check_port,
    gate_failure,
    gate_passed,
    in_order,
    wanted,
)
from builderd.qa.port import Target
from builderd.reconciler.failures import SHOWN_LINES
from builderd.sandboxes.model import LogStream, Sandbox, SandboxState
from builderd.tokens.limits import StartLimit
from builderd.versions.model import Protocol, Version, VersionStatus


@dataclass(frozen=True, slots=True)
class QaView:
    """A version with its QA results."""

    version: Version
    report: QaReport


async def judge(
    application: Application,
    builder: Builder,
    version: Version,
    sandbox: Sandbox,
    *,
    alive_after: float = ALIVE_SECONDS,
) -> tuple[Check, ...]:
    """Return the gate's checks of an app that is up: one GET, and a check after ``alive_after`` seconds.

    A worker only has to keep running.
    """
    sandboxes, settings = application.engine.sandboxes, version.settings
    report = await sandboxes.report(sandbox.id)
    started, listening = sandbox.started_at, sandbox.listening_at
    if not builder.job_type.must_listen:
        seconds = (application.clock.now() - (started or sandbox.created_at)).total_seconds()
        lived = check_lived(report, seconds, settings.resources, await last_lines(application, sandbox.id))
        return in_order([lived, check_memory(report, settings.resources)])
    port = check_port(version.port, (listening - started).total_seconds() if started and listening else 0.0)
    if report.ip is None:  # it ended just now
        look = SecondLook(report, False, 0.0)
        lines = await last_lines(application, sandbox.id)
        alive = check_alive(look, version.port, GATE_PATH, settings.resources, lines)
        return in_order([port, alive, check_memory(report, settings.resources)])
    url, h2c = application.preview_domain.url(builder.host), settings.protocol is Protocol.H2C
    target = Target(Address(report.ip, version.port), url, h2c)
    visit = await _visit(application, target, sandbox, application.limits.start_seconds(settings))
    # A take-over after a trial has its page looked at there, while no visitor waits.
    was_looked_at = builder.handover is Handover.FORWARD and not settings.release
    looked = [] if was_looked_at else await _look(application, version, target, visit)
    second = await _look_again(application, sandbox.id, version.port, alive_after)

    def checks(lines: Sequence[str]) -> tuple[Check, ...]:
        return in_order(
            [
                port,
                check_http2(visit, lines) if h2c else check_answer(visit, GATE_PATH, lines, start_hint(lines, None)),
                check_alive(second, version.port, GATE_PATH, settings.resources, lines),
                check_memory(second.report, settings.resources),
                *looked,
            ]
        )

    passed = checks(())
    # Only what did not pass quotes the log.
    return passed if gate_passed(passed) else checks(await last_lines(application, sandbox.id))


async def look_at_trial(application: Application, builder: Builder, version: Version, address: Address) -> str:
    """Return why the page of a version that is tried fails the gate, "" if it does not."""
    target = Target(address, application.preview_domain.url(builder.host), version.settings.protocol is Protocol.H2C)
    visit = await application.testers.visit(target, GATE_PATH, GATE_TIMEOUT)
    return gate_failure(await _look(application, version, target, visit))


async def _look(application: Application, version: Version, target: Target, visit: Visit) -> list[Check]:
    """Look in a browser at a page that shows nothing before its scripts have run, if the gate is required."""
    if not (visit.is_shell and version.settings.require_qa and application.limits.qa_report):
        return []
    looked = await application.testers.look(target)
    return [looked] if looked.outcome is not Outcome.NOT_JUDGED else []


async def _look_again(application: Application, sandbox: SandboxId, port: int, seconds: float) -> SecondLook:
    """Look at the app after so many seconds; wait for one that listens no more to end, or to listen again.

    Its end is the better reason, and an engine may know of it later than of the port.
    """
    sandboxes, clock = application.engine.sandboxes, application.clock
    begun = clock.passed()
    await clock.sleep(seconds)
    while True:
        reachable = (await sandboxes.listening(sandbox, port)).reachable(port)
        report = await sandboxes.report(sandbox)
        waited = clock.passed() - begun
        if reachable or not report.alive or waited >= seconds + ENDING_SECONDS:
            return SecondLook(report, reachable, waited)
        await clock.sleep(RETRY_PAUSE)


async def _visit(application: Application, target: Target, sandbox: Sandbox, start_seconds: float) -> Visit:
    """Ask the app; one that refuses, or that answers 503, is asked again for ``RETRY_SECONDS``.

    Each request is waited for as long as the start may take: a server may listen before its workers have loaded.
    """
    sandboxes, clock = application.engine.sandboxes, application.clock
    before = (clock.now() - (sandbox.started_at or sandbox.created_at)).total_seconds()
    start = StartLimit(application.engine, clock, start_seconds, before)
    retries: StartLimit | None = None
    while True:
        visit = await application.testers.visit(target, GATE_PATH, max(GATE_TIMEOUT, start.left))
        is_ready = visit.status not in (None, HTTPStatus.SERVICE_UNAVAILABLE)
        has_hung = visit.status is None and visit.seconds >= GATE_TIMEOUT
        if is_ready or has_hung or not (await sandboxes.report(sandbox.id)).alive:
            return visit
        retries = retries or StartLimit(application.engine, clock, RETRY_SECONDS)
        if retries.left <= 0:
            return visit
        await clock.sleep(RETRY_PAUSE)


async def last_lines(application: Application, sandbox: SandboxId) -> Sequence[str]:
    page = await application.engine.logs.read_log(sandbox, tail=SHOWN_LINES)
    return [line.text for line in page.lines if line.stream is not LogStream.BUILD]


def record_gate(uow: UnitOfWork, builder_id: BuilderId, number: int, gate: Sequence[Check], now: datetime) -> None:
    """Store the checks of the version, and the verdict unless its gate was skipped."""
    version = uow.versions.require(builder_id, number)
    if not version.settings.skip_qa:
        uow.versions.save(replace(version, qa_passed=gate_passed(gate)))
    report = _report(uow, builder_id, number)
    uow.qa_reports.save(replace(report, gate=in_order(gate), gate_at=now))


def want_report(uow: UnitOfWork, builder_id: BuilderId, number: int, by: str, now: datetime) -> QaReport:
    """Request a report of this version, unless one is under way."""
    report = wanted(_report(uow, builder_id, number), by, now)
    uow.qa_reports.save(report)
    return report


def get(uow: UnitOfWork, tenant_id: TenantId, builder_id: str, number: int | None = None) -> QaView:
    """Return the QA of a version, by default of the current one. Raises ``NotFound``."""
    builder = builders.get(uow, tenant_id, builder_id)
    version = uow.versions.get(builder.id, builder.version if number is None else number)
    if version is None:
        raise NotFound(f"The builder has no version {number}: its current one is {builder.version}.")
    return QaView(version, _report(uow, builder.id, version.number))


def screenshot(
    uow: UnitOfWork, tenant_id: TenantId, builder_id: str, name: str, number: int | None = None
) -> Screenshot:
    """Return the PNG of this name. Raises ``NotFound``."""
    view = get(uow, tenant_id, builder_id, number)
    found = uow.qa_reports.screenshot(view.version.builder_id, view.version.number, name)
    if found is None:
        known = ", ".join(view.report.screenshots) or "none"
        raise NotFound(f"There is no such screenshot of version {view.version.number}: there are {known}.")
    return found


async def again(application: Application, caller: Caller, builder_id: str) -> QaView:
    """Run the QA gate on the running app again, and request a new report. Raises ``NotFound`` and ``InvalidState``."""
    builder, version, sandbox = await application.store.read(lambda uow: _find(uow, caller.tenant_id, builder_id))
    gate: tuple[Check, ...] = ()
    # The verdict stays if the app does not run now.
    if sandbox is not None and sandbox.listening_at is not None and sandbox.version == version.number:
        state = (await application.engine.sandboxes.report(sandbox.id)).state
        gate = await judge(application, builder, version, sandbox) if state is SandboxState.RUNNING else ()
    now = application.clock.now()

    def record(uow: UnitOfWork) -> Builder:
        locked = builders.get(uow, caller.tenant_id, builder_id, lock=True)
        if gate:
            record_gate(uow, locked.id, version.number, gate, now)
        if locked.job_type.must_listen:
            want_report(uow, locked.id, version.number, caller.actor, now)
        return locked

    await application.commit(record)
    return await application.store.read(lambda uow: get(uow, caller.tenant_id, builder_id, version.number))


def _find(uow: UnitOfWork, tenant_id: TenantId, builder_id: str) -> tuple[Builder, Version, Sandbox | None]:
    builder = builders.get(uow, tenant_id, builder_id)
    version = uow.versions.require(builder.id, builder.version)
    if builder.job_type is JobType.ONE_TIME:
        raise InvalidState("A one_time job is judged by its exit code alone: start it again to have it judged again.")
    if not builder.job_type.is_judged:
        raise InvalidState("A sandbox has no app that QA could judge.")
    if builder.status is Status.CREATING or version.status is not VersionStatus.DEPLOYED:
        raise InvalidState(f"The builder is {builder.status}: QA needs a version that has run.")
    return builder, version, uow.sandboxes.open_of(builder.id)


def _report(uow: UnitOfWork, builder_id: BuilderId, number: int) -> QaReport:
    return uow.qa_reports.get(builder_id, number) or QaReport(builder_id, number)

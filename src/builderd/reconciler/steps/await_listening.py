"""The health check of a start: wait until the app listens on its port, or a worker has lived for a second.

Recorded: when it listened, or the failed start with the reason. An end by itself is recorded by the next step.
Left when killed: nothing; the time counts from the sandbox's start, so that the next try continues the wait.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from builderd.application import Application
from builderd.builders.model import Handover, Status
from builderd.core.errors import StartFailed
from builderd.qa.model import WORKER_ALIVE_SECONDS
from builderd.qa.service import last_lines
from builderd.reconciler import record as transitions
from builderd.reconciler.failures import listens_elsewhere, not_listening
from builderd.reconciler.listeners import adoptable_ports, choose_port
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.sandboxes.model import Listening, Sandbox, SandboxReport
from builderd.tokens.limits import StartLimit
from builderd.versions.model import Version

#: Seconds for an app that listens only on an unreachable address to open its port as well.
ELSEWHERE_GRACE = 5.0
#: Seconds for which an app that was given no port must have the same ports open, before the preview leads to another.
SETTLE_SECONDS = 1.0
#: Pause between two looks at the port: this part of the time since the start, and the bounds in seconds.
PAUSE_SHARE, FIRST_PAUSE, LAST_PAUSE = 0.02, 0.002, 0.1
#: Seconds between two questions to the engine for the sandbox's state and for what listens elsewhere: a question takes
#: ten times the CPU time of a look at the port.
REPORT_INTERVAL = 0.25
#: A worker that uses more than this part of a processor at the end of its lifetime still starts, for so many seconds.
BUSY_SHARE, LONGEST_IMPORT = 0.25, 10.0
#: What is left of a visitor's time once the old version has ended, with some to spare, in seconds.
LEFT = 18.0
#: Least seconds for a new version to listen.
MIN_HANDOVER_SECONDS = 5.0


async def await_listening(app: Application, item: WorkItem, sandbox: Sandbox) -> Result:
    port = item.version.settings.port
    wait = await wait_until_up(app, item, sandbox, await _time_limit(app, item))
    if wait.reachable:

        def record(transition: Transition) -> None:
            mark_up(transition, sandbox)
            transitions.leads_to(transition, item.version, wait.port, wait.listening)
            if transitions.same_generation(transition.builder, item.builder) and not transition.builder.settled:
                seconds = (transition.now - sandbox.created_at).total_seconds()
                transitions.stage_finished(transition, "start", seconds=seconds, ok=True)

        return Result(record, quiet=True, durable=False)
    if wait.ended is not None:
        return Result()  # the next look records the end and judges it
    lines = await last_lines(app, sandbox.id)
    reason = not_listening(wait.listening, port, wait.seconds, lines)
    return transitions.stage_failed(app, item, "start", StartFailed.code, reason, since=sandbox.created_at)


def mark_up(transition: Transition, sandbox: Sandbox) -> None:
    """Record that it listened, or has lived as long as a worker must."""
    transition.uow.sandboxes.save(replace(sandbox, listening_at=transition.now))


async def _time_limit(app: Application, item: WorkItem) -> float:
    """Return how long the app may take to listen, in seconds."""
    limits = app.limits
    longest = limits.start_seconds(item.version.settings)
    if item.builder.handover is not Handover.FORWARD or item.builder.status is not Status.RUNNING:
        return longest
    sandboxes = await app.store.read(lambda uow: uow.sandboxes.list(item.builder.id))
    trials = [one for one in sandboxes if one.trial and one.version == item.version.number]
    current = item.builder.version
    runs = [one for one in sandboxes if one.version == current and one.listening_at and not (one.trial or one.process)]
    last_trial, last_run = (found[-1] if found else None for found in (trials, runs))
    return time_limit(last_trial, last_run, limits.handover_timeout, longest)


def time_limit(trial: Sandbox | None, old: Sandbox | None, usual: float, longest: float) -> float:
    """Return how long a version that takes over may take to listen: the timeout of its start, in seconds.

    The time covers the visitors' wait for it and, should it fail, for the old version's restart. A version that was
    too slow for that on trial gets ``longest``, the full start timeout, and visitors see a page that says it starts.
    One whose trial did not listen, for lack of a network or on a busy machine, counts as slow as its predecessor.
    """
    before = _startup_seconds(old)
    allowed = min(usual, max(LEFT - (before or 0.0), MIN_HANDOVER_SECONDS), longest)
    startup = _startup_seconds(trial)
    if startup is None:
        startup = before
    return longest if startup is not None and startup > allowed / 2 else allowed


def _startup_seconds(sandbox: Sandbox | None) -> float | None:
    if sandbox is None or sandbox.listening_at is None or sandbox.started_at is None:
        return None
    return (sandbox.listening_at - sandbox.started_at).total_seconds()


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Outcome: ``reachable``, or else the report of an app that ``ended``, or else it listens at ``listening``.

    ``port`` is the one that can be reached, None of a worker.
    """

    reachable: bool
    listening: Listening
    ended: SandboxReport | None
    seconds: float
    port: int | None = None


async def wait_until_up(application: Application, item: WorkItem, sandbox: Sandbox, timeout: float) -> HealthCheck:
    """Look until the app can be reached or the worker has lived long enough, the sandbox ends, or the time is over."""
    if item.builder.job_type.must_listen:
        return await wait_until_listening(application, sandbox, item.version, timeout)
    return await wait_until_aged(application, sandbox, WORKER_ALIVE_SECONDS if item.builder.job_type.is_judged else 0.0)


async def wait_until_aged(application: Application, sandbox: Sandbox, lifetime: float) -> HealthCheck:
    """Look until it has lived for so many seconds and computes no longer, as during its imports, or has ended."""
    life, sandboxes = _limit(application, sandbox, lifetime), application.engine.sandboxes
    while True:
        is_old = life.left <= 0
        is_busy = is_old and lifetime > 0 and life.seconds < LONGEST_IMPORT and await _computes(application, sandbox)
        report = await sandboxes.report(sandbox.id)
        if not report.alive or (is_old and not is_busy):
            return HealthCheck(report.alive, Listening(frozenset()), None if report.alive else report, life.seconds)
        if not is_old:
            await application.clock.sleep(min(LAST_PAUSE, lifetime / 4))


async def _computes(application: Application, sandbox: Sandbox) -> bool:
    """Return True where it uses more than a part of a processor."""
    before = await application.engine.sandboxes.usage(sandbox.id)
    await application.clock.sleep(REPORT_INTERVAL)
    after = await application.engine.sandboxes.usage(sandbox.id)
    if before is None or after is None:
        return False
    return after.cpu_seconds - before.cpu_seconds > BUSY_SHARE * REPORT_INTERVAL


async def wait_until_listening(
    application: Application, sandbox: Sandbox, version: Version, timeout: float
) -> HealthCheck:
    """Look until a port of the app can be reached, the sandbox ends, or the time is over.

    Counted from the start of the sandbox, so that a wait that was broken off continues where it was.
    """
    limit, next_report = _limit(application, sandbox, timeout), 0.0
    elsewhere: StartLimit | None = None
    sandboxes, ports, settling = application.engine.sandboxes, frozenset[int](), limit
    while True:
        listening = await sandboxes.listening(sandbox.id, version.port)
        if (found := adoptable_ports(listening, version)) != ports:
            ports, settling = found, StartLimit(application.engine, application.clock, SETTLE_SECONDS)
        port = choose_port(listening, version, is_settled=settling.left <= 0)
        if port is not None:  # one that was not dialled may be open and yet out of reach, on loopback
            dialled = listening if port == version.port else await sandboxes.listening(sandbox.id, port)
            if dialled.reachable(port):
                return HealthCheck(True, listening, None, limit.seconds, port)
        if limit.seconds >= next_report:
            report = await sandboxes.report(sandbox.id)
            if not report.alive:
                return HealthCheck(False, listening, report, limit.seconds)
            next_report = limit.seconds + REPORT_INTERVAL
        if not listens_elsewhere(listening, version.settings.port):
            elsewhere = None
        elif elsewhere is None:
            elsewhere = StartLimit(application.engine, application.clock, ELSEWHERE_GRACE)
        if limit.left <= 0 or (elsewhere is not None and elsewhere.left <= 0):
            return HealthCheck(False, listening, None, limit.seconds)
        pause = min(max(PAUSE_SHARE * limit.seconds, FIRST_PAUSE), LAST_PAUSE)
        await application.clock.sleep(pause)


def _limit(application: Application, sandbox: Sandbox, timeout: float) -> StartLimit:
    now = application.clock.now()
    before = (now - (sandbox.started_at or now)).total_seconds()
    return StartLimit(application.engine, application.clock, timeout, before)

"""The health check of a start: wait until the app can be reached, or say clearly why it cannot."""

from __future__ import annotations

from dataclasses import dataclass

from builderd.domain.failures import listens_elsewhere
from builderd.domain.qa import WORKER_ALIVE_SECONDS
from builderd.domain.sandboxes import Listening, Sandbox, SandboxReport
from builderd.reconciler.core.observe import WorkItem
from builderd.services.application import Application
from builderd.services.limits import StartLimit

#: Seconds for an app that listens only on an unreachable address to open its port as well.
ELSEWHERE_GRACE = 5.0
#: Pause between two looks at the port: this part of the time since the start, and the bounds in seconds.
PAUSE_SHARE, FIRST_PAUSE, LAST_PAUSE = 0.02, 0.002, 0.1
#: Seconds between two questions to the engine for the sandbox's state and for what listens elsewhere: a question takes
#: ten times the CPU time of a look at the port.
REPORT_INTERVAL = 0.25


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Outcome: ``reachable``, or else the report of an app that ``ended``, or else it listens at ``listening``."""

    reachable: bool
    listening: Listening
    ended: SandboxReport | None
    seconds: float


async def wait_until_up(application: Application, item: WorkItem, sandbox: Sandbox, timeout: float) -> HealthCheck:
    """Look until the app can be reached or the worker has lived long enough, the sandbox ends, or the time is over."""
    if item.builder.job_type.must_listen:
        return await wait_until_listening(application, sandbox, item.version.settings.port, timeout)
    lifetime = WORKER_ALIVE_SECONDS if item.builder.job_type.is_judged else 0.0
    life = _limit(application, sandbox, lifetime)
    while True:
        report = await application.engine.sandboxes.report(sandbox.id)
        if not report.alive or life.left <= 0:
            return HealthCheck(report.alive, Listening(frozenset()), None if report.alive else report, life.seconds)
        await application.clock.sleep(min(LAST_PAUSE, lifetime / 4))


async def wait_until_listening(application: Application, sandbox: Sandbox, port: int, timeout: float) -> HealthCheck:
    """Look until the port can be reached, the sandbox ends, or the time is over.

    Counted from the start of the sandbox, so that a wait that was broken off continues where it was.
    """
    limit, next_report = _limit(application, sandbox, timeout), 0.0
    elsewhere: StartLimit | None = None
    with application.engine.sandboxes.watch_port(sandbox.id) as may_listen:
        while True:
            asks = limit.seconds >= next_report
            if asks or may_listen():
                listening = await application.engine.sandboxes.listening(sandbox.id)
            if listening.reachable(port):
                return HealthCheck(True, listening, None, limit.seconds)
            if asks:
                report = await application.engine.sandboxes.report(sandbox.id)
                if not report.alive:
                    return HealthCheck(False, listening, report, limit.seconds)
                next_report = limit.seconds + REPORT_INTERVAL
            if not listens_elsewhere(listening, port):
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

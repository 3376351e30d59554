"""Waiting until an app can be reached: as short as the app allows, and as clear as can be when it cannot."""

from __future__ import annotations

import math
from dataclasses import dataclass

from builderd.domain.failures import listens_elsewhere
from builderd.domain.qa import WORKER_ALIVE_SECONDS
from builderd.domain.sandboxes import Listening, Sandbox, SandboxReport
from builderd.reconciler.core.observe import WorkItem
from builderd.services.application import Application
from builderd.services.start_time import StartTime

#: Seconds for an app that listens only on an unreachable address to open its port as well.
ELSEWHERE_GRACE = 5.0
#: Pause between two looks at the port in seconds: the first until ``FAST_SECONDS`` since the sandbox's start, the next
#: until twice ``DOUBLED_SECONDS``, twice that until four times as long, and so on up to the last. Few values, so that
#: the looks at several apps that start wake the loop together.
FIRST_PAUSE, SECOND_PAUSE, LAST_PAUSE = 0.002, 0.004, 0.1
FAST_SECONDS, DOUBLED_SECONDS = 0.025, 0.1
#: Looks after which the pause may have to be longer, while it is the first.
FAST_LOOKS = 12
#: Seconds between two questions to the engine for the sandbox's state and for what listens elsewhere, and the bounds in
#: looks: a question takes ten times the CPU time of a look at the port.
REPORT_SECONDS, LEAST_LOOKS, MOST_LOOKS = 0.25, 5, 25


@dataclass(frozen=True, slots=True)
class Wait:
    """``reachable``, or else ``ended`` tells how it ended, or else it listens at ``listening`` at most."""

    reachable: bool
    listening: Listening
    ended: SandboxReport | None
    seconds: float


async def wait_until_up(application: Application, item: WorkItem, sandbox: Sandbox, timeout: float) -> Wait:
    """Look until the app can be reached or the worker has lived long enough, the sandbox ends, or the time is over."""
    if item.builder.job_type.must_listen:
        return await wait_until_listening(application, sandbox, item.version.settings.port, timeout)
    lifetime = WORKER_ALIVE_SECONDS if item.builder.job_type.is_judged else 0.0
    return await _wait_until_lived(application, sandbox, lifetime)


async def wait_until_listening(application: Application, sandbox: Sandbox, port: int, timeout: float) -> Wait:
    """Look until the port can be reached, the sandbox ends, or its ``StartTime`` is over.

    Counted from the start of the sandbox, so that a wait that was broken off continues where it was.
    """
    start_time = _start_time(application, sandbox, timeout)
    elsewhere: StartTime | None = None
    left = 0
    with application.engine.sandboxes.watch_port(sandbox.id) as may_listen:
        while True:
            looks_closely = left <= 0
            if looks_closely or may_listen():
                listening = await application.engine.sandboxes.listening(sandbox.id)
            if listening.reachable(port):
                return Wait(True, listening, None, start_time.seconds)
            if looks_closely:
                report = await application.engine.sandboxes.report(sandbox.id)
                if not report.alive:
                    return Wait(False, listening, report, start_time.seconds)
            if not listens_elsewhere(listening, port):
                elsewhere = None
            elif elsewhere is None:
                elsewhere = StartTime(application.engine, application.clock, ELSEWHERE_GRACE)
            if start_time.is_over() or (elsewhere is not None and elsewhere.is_over()):
                return Wait(False, listening, None, start_time.seconds)
            pause = _pause(start_time.seconds)
            left = _looks(pause) if looks_closely else left
            left -= await application.clock.poll(may_listen, pause, min(left, _in_a_row(pause)))


async def _wait_until_lived(application: Application, sandbox: Sandbox, lifetime: float) -> Wait:
    """Look until the sandbox has lived for ``lifetime`` seconds, twice as long beside a busy machine, or ends."""
    life = _start_time(application, sandbox, lifetime)
    while True:
        report = await application.engine.sandboxes.report(sandbox.id)
        if not report.alive or lifetime == 0 or life.is_over():
            return Wait(report.alive, Listening(frozenset()), None if report.alive else report, life.seconds)
        await application.clock.sleep(min(LAST_PAUSE, lifetime / 4))


def _start_time(application: Application, sandbox: Sandbox, timeout: float) -> StartTime:
    clock = application.clock
    before = (clock.now() - sandbox.started_at).total_seconds() if sandbox.started_at else 0.0
    return StartTime(application.engine, clock, timeout, before)


def _pause(seconds: float) -> float:
    if seconds < FAST_SECONDS:
        return FIRST_PAUSE
    doublings = int(math.log2(max(seconds / DOUBLED_SECONDS, 1)))
    return min(SECOND_PAUSE * (1 << doublings), LAST_PAUSE)


def _in_a_row(pause: float) -> int:
    """Return the looks after which the start time and the pause are looked at again."""
    if pause == FIRST_PAUSE:
        return FAST_LOOKS
    # Long pauses are taken one by one: the start time may be over after each.
    return MOST_LOOKS if pause < LAST_PAUSE else 1


def _looks(pause: float) -> int:
    """Return the looks at the port until the engine is asked again."""
    return min(max(round(REPORT_SECONDS / pause), LEAST_LOOKS), MOST_LOOKS)

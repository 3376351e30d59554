"""The next step, case by case."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.samples import BUILDER, NOW, SECOND, make_builder, make_sandbox

from builderd.builders.model import Builder, Desired, JobType, Status, StopKind, Visibility, restart_delay
from builderd.core.ids import DiskId, secret_hash
from builderd.previews.model import Address, Route, RouteState
from builderd.reconciler.next_step import (
    Action,
    GiveUp,
    Install,
    Observation,
    PlanSandbox,
    Review,
    SetRoute,
    Settle,
    Step,
    StopSandbox,
    VersionState,
    Wait,
    next_step,
)
from builderd.sandboxes.model import EndCause, Sandbox, SandboxEnd, SandboxReport, SandboxState

BUNDLE = "b" * 64
READY = VersionState(1, 8000, BUNDLE, layer_ready=True)
NO_LAYER = replace(READY, layer_ready=False)
ALWAYS_ON = make_builder()
JOB = make_builder(job_type=JobType.ONE_TIME)
WORKER = make_builder(job_type=JobType.WORKER)
UP = make_builder(status=Status.RUNNING, observed_generation=1)
WANTED_STOPPED = replace(UP, desired=Desired.STOPPED)
SLEEPY = replace(UP, asleep_since=NOW)
IDLED = replace(WANTED_STOPPED, stop_kind=StopKind.IDLE)
WANTED_DELETED = replace(UP, desired=Desired.DELETED)
TOKEN = secret_hash(UP.service_token)


def route(state: RouteState, ip: str | None = None, port: int = 8000) -> Route:
    address = Address(ip, port) if ip else None
    return Route(UP.host, state, address, builder_id=BUILDER, owner_hash=TOKEN, tenant_id=UP.tenant_id)


STARTING, STOPPED, FAILED = route(RouteState.STARTING), route(RouteState.STOPPED), route(RouteState.FAILED)
ASLEEP = route(RouteState.ASLEEP)
FOR_WORKER = route(RouteState.WORKER)
FOR_JOB, OPEN = route(RouteState.JOB), route(RouteState.OPEN, "10.0.0.2")

PLANNED = make_sandbox()
STARTED = replace(PLANNED, started_at=NOW, ip="10.0.0.2")
LISTENING = replace(STARTED, listening_at=NOW)
REPORT = SandboxReport(PLANNED.id, BUILDER, SandboxState.RUNNING, "10.0.0.2", NOW)
FROZEN = replace(REPORT, state=SandboxState.FROZEN, frozen_at=NOW)
#: Of an app that slept before, while its disk is copied.
COPIED = replace(FROZEN, thawed_at=NOW + timedelta(seconds=1))
ABSENT = SandboxReport(PLANNED.id, None, SandboxState.ABSENT)
EXITED = replace(REPORT, state=SandboxState.EXITED, ip=None, end=SandboxEnd(EndCause.EXITED, 1, NOW))
PARTIAL = replace(REPORT, state=SandboxState.PARTIAL, ip=None)


def seen(*, ends: tuple[Sandbox, ...] = (), **changes: Any) -> Observation:
    """Everything is prepared, and nothing runs; what ended are the attempts from the first on."""
    at_rest = Observation(
        now=NOW,
        version=READY,
        candidate=None,
        trial=None,
        disk_ready=True,
        disk_bundle=BUNDLE,
        sandbox=None,
        report=None,
        ends=tuple(replace(one, attempt=number) for number, one in enumerate(ends, start=1)),
        route=STARTING,
    )
    return replace(at_rest, **changes)


def ended(cause: EndCause, ago: float = 0, *, listened: bool = True, exit_code: int | None = 1) -> Sandbox:
    at = NOW - timedelta(seconds=ago)
    return replace(
        PLANNED,
        created_at=at - SECOND,
        started_at=at - SECOND,
        listening_at=at - SECOND if listened else None,
        end=SandboxEnd(cause, exit_code, at),
    )


CASES: dict[str, tuple[Builder, Observation, Step]] = {
    # towards running
    "at first the preview says that it starts": (ALWAYS_ON, seen(route=None), SetRoute(STARTING)),
    "a job's preview says that it is one": (JOB, seen(route=None), SetRoute(FOR_JOB)),
    "then the review, before anything is installed": (
        ALWAYS_ON,
        seen(version=replace(NO_LAYER, review_due=True), disk_ready=False, disk_bundle=None),
        Review(1),
    ),
    "and before anything is started": (
        ALWAYS_ON,
        seen(sandbox=PLANNED, report=ABSENT, version=replace(READY, review_due=True)),
        Review(1),
    ),
    "what runs is not stopped for it": (
        UP,
        seen(sandbox=LISTENING, report=REPORT, route=OPEN, version=replace(READY, review_due=True)),
        Wait(),
    ),
    "then the layer": (ALWAYS_ON, seen(version=NO_LAYER, disk_ready=False, disk_bundle=None), Install(1)),
    "then the disk": (ALWAYS_ON, seen(disk_ready=False, disk_bundle=None), Action.CREATE_DISK),
    "a disk that no ledger counts is made again": (ALWAYS_ON, seen(disk_ready=False), Action.CREATE_DISK),
    "a disk leaves a member that is evacuated": (
        ALWAYS_ON,
        seen(disk_leaving=True, disk_bundle=None),
        Action.MOVE_DISK,
    ),
    "one that is gone comes back from its backup": (
        ALWAYS_ON,
        seen(disk_ready=False, disk_bundle=None, lost=True),
        Action.RECOVER_DISK,
    ),
    "which is waited for": (
        ALWAYS_ON,
        seen(disk_ready=False, disk_bundle=None, lost=True, recovering=True),
        Wait(),
    ),
    "one without a backup is recorded as lost": (
        ALWAYS_ON,
        seen(disk_ready=False, disk_bundle=None, loss_due=True),
        Action.RECORD_LOSS,
    ),
    "an app that was planned before its release's disk was lost is given up": (
        ALWAYS_ON,
        seen(sandbox=PLANNED, report=ABSENT, version=replace(READY, release_due=True)),
        StopSandbox(),
    ),
    "then the files": (ALWAYS_ON, seen(disk_bundle=None), Action.PUT_BUNDLE),
    "files of another version are replaced": (ALWAYS_ON, seen(disk_bundle="c" * 64), Action.PUT_BUNDLE),
    "then a sandbox is recorded": (ALWAYS_ON, seen(), PlanSandbox(1)),
    "and started": (ALWAYS_ON, seen(sandbox=PLANNED, report=ABSENT), Action.START_SANDBOX),
    "a half-made one is started again": (ALWAYS_ON, seen(sandbox=PLANNED, report=PARTIAL), Action.START_SANDBOX),
    "one that runs without a record of it, too": (
        ALWAYS_ON,
        seen(sandbox=PLANNED, report=REPORT),
        Action.START_SANDBOX,
    ),
    "even when it ended meanwhile": (ALWAYS_ON, seen(sandbox=PLANNED, report=EXITED), Action.START_SANDBOX),
    "a sandbox that was planned on a disk that a restored one replaced is given up": (
        replace(ALWAYS_ON, disk=DiskId("restored")),
        seen(sandbox=PLANNED, report=ABSENT),
        StopSandbox(),
    ),
    "a layer that got lost is made before the start": (
        ALWAYS_ON,
        seen(sandbox=PLANNED, report=ABSENT, version=NO_LAYER),
        Install(1),
    ),
    "then it must listen": (ALWAYS_ON, seen(sandbox=STARTED, report=REPORT), Action.AWAIT_LISTENING),
    "then visitors are let in": (ALWAYS_ON, seen(sandbox=LISTENING, report=REPORT), SetRoute(OPEN)),
    "then it is up": (ALWAYS_ON, seen(sandbox=LISTENING, report=REPORT, route=OPEN), Settle(Status.RUNNING)),
    "and stays so": (UP, seen(sandbox=LISTENING, report=REPORT, route=OPEN), Wait()),
    "a worker's preview says that it is one": (WORKER, seen(route=None), SetRoute(FOR_WORKER)),
    "a worker must live": (WORKER, seen(sandbox=STARTED, report=REPORT, route=FOR_WORKER), Action.AWAIT_LISTENING),
    "then it is judged": (
        WORKER,
        seen(sandbox=LISTENING, report=REPORT, route=FOR_WORKER, version=replace(READY, qa_due=True)),
        Action.CHECK_APP,
    ),
    "then it is up, without a route": (
        WORKER,
        seen(sandbox=LISTENING, report=REPORT, route=FOR_WORKER),
        Settle(Status.RUNNING),
    ),
    "a worker that never was up is given up": (
        WORKER,
        seen(ends=(ended(EndCause.EXITED, listened=False),), route=FOR_WORKER),
        GiveUp(too_often=False),
    ),
    "a new version that crashes after it was up is given up": (
        ALWAYS_ON,
        seen(ends=(ended(EndCause.EXITED),), version=replace(READY, is_new=True)),
        GiveUp(too_often=False),
    ),
    "a sandbox shows its port at once": (
        make_builder(job_type=JobType.SANDBOX),
        seen(sandbox=LISTENING, report=REPORT, route=STARTING),
        SetRoute(OPEN),
    ),
    # asleep
    "before it stands still, visitors are held": (
        SLEEPY,
        seen(sandbox=LISTENING, report=REPORT, route=OPEN),
        SetRoute(ASLEEP),
    ),
    "then it stands still": (SLEEPY, seen(sandbox=LISTENING, report=REPORT, route=ASLEEP), Action.FREEZE),
    "and is paid so": (SLEEPY, seen(sandbox=LISTENING, report=FROZEN, route=ASLEEP), Action.FREEZE),
    "also one whose disk is being copied": (
        SLEEPY,
        seen(sandbox=LISTENING, report=COPIED, route=ASLEEP),
        Action.FREEZE,
    ),
    "and stays asleep": (SLEEPY, seen(sandbox=LISTENING, report=FROZEN, route=ASLEEP, paid_frozen=True), Wait()),
    "one that was thawed by a command is frozen again": (
        SLEEPY,
        seen(sandbox=LISTENING, report=REPORT, route=ASLEEP, paid_frozen=True),
        Action.FREEZE,
    ),
    "what is not up yet is not put to sleep": (
        replace(SLEEPY, observed_generation=0),
        seen(sandbox=LISTENING, report=REPORT, route=OPEN),
        Settle(Status.RUNNING),
    ),
    "one that is woken goes on": (
        UP,
        seen(sandbox=LISTENING, report=FROZEN, route=ASLEEP, paid_frozen=True),
        Action.THAW,
    ),
    "one that is frozen for a copy of its disk is left alone": (
        UP,
        seen(sandbox=LISTENING, report=replace(REPORT, state=SandboxState.FROZEN), route=OPEN),
        Wait(),
    ),
    "also one that has slept before": (UP, seen(sandbox=LISTENING, report=COPIED, route=OPEN), Wait()),
    "and is paid so again": (UP, seen(sandbox=LISTENING, report=REPORT, route=ASLEEP, paid_frozen=True), Action.THAW),
    "then visitors are let in again": (UP, seen(sandbox=LISTENING, report=REPORT, route=ASLEEP), SetRoute(OPEN)),
    "one that ends in its sleep has ended": (
        SLEEPY,
        seen(sandbox=LISTENING, report=EXITED, route=STARTING, paid_frozen=True),
        Action.RECORD_END,
    ),
    "one that idles to its stop holds its visitors": (
        IDLED,
        seen(sandbox=LISTENING, report=REPORT, route=OPEN),
        SetRoute(ASLEEP),
    ),
    "one that idled to its stop is stopped, frozen or not": (
        IDLED,
        seen(sandbox=LISTENING, report=FROZEN, route=ASLEEP, paid_frozen=True),
        StopSandbox(),
    ),
    "and goes on holding them": (replace(IDLED, status=Status.STOPPED), seen(route=ASLEEP), Wait()),
    "while it is started again, too": (
        replace(IDLED, desired=Desired.RUNNING, generation=2),
        seen(route=ASLEEP),
        SetRoute(route(RouteState.PAUSED)),
    ),
    "until it is up": (
        replace(IDLED, desired=Desired.RUNNING),
        seen(sandbox=LISTENING, report=REPORT, route=OPEN),
        Settle(Status.RUNNING),
    ),
    "a cap's stop says so": (
        replace(WANTED_STOPPED, stop_kind=StopKind.CAP),
        seen(sandbox=LISTENING, report=REPORT, route=OPEN),
        SetRoute(route(RouteState.CAPPED)),
    ),
    "what is missing matters no more while it runs": (
        UP,
        seen(sandbox=LISTENING, report=REPORT, route=OPEN, version=NO_LAYER, disk_bundle=None),
        Wait(),
    ),
    "a route to where it was before is mended": (
        UP,
        seen(sandbox=LISTENING, report=REPORT, route=route(RouteState.OPEN, "10.0.0.9")),
        SetRoute(OPEN),
    ),
    "and one to another port": (
        UP,
        seen(sandbox=LISTENING, report=REPORT, route=route(RouteState.OPEN, "10.0.0.2", 9)),
        SetRoute(OPEN),
    ),
    "and one that lets everybody in": (
        replace(UP, visibility=Visibility.PRIVATE),
        seen(sandbox=LISTENING, report=REPORT, route=OPEN),
        SetRoute(replace(OPEN, token_hash=TOKEN, owner_hash=None)),
    ),
    "and one that was lost": (UP, seen(sandbox=LISTENING, report=REPORT, route=None), SetRoute(OPEN)),
    # a job
    "a job that was started is a success so far": (
        JOB,
        seen(sandbox=STARTED, report=REPORT, route=FOR_JOB),
        Settle(Status.RUNNING),
    ),
    "a job goes on until it ends": (
        replace(JOB, status=Status.RUNNING, observed_generation=1),
        seen(sandbox=STARTED, report=REPORT, route=FOR_JOB),
        Wait(),
    ),
    "a job's end is recorded": (JOB, seen(sandbox=STARTED, report=EXITED, route=FOR_JOB), Action.RECORD_END),
    "a job that ended well has completed": (
        JOB,
        seen(ends=(ended(EndCause.EXITED, exit_code=0),)),
        Settle(Status.COMPLETED),
    ),
    "a job that ended badly has failed": (JOB, seen(ends=(ended(EndCause.EXITED),)), Settle(Status.FAILED)),
    "and one that was killed": (
        JOB,
        seen(ends=(ended(EndCause.OUT_OF_MEMORY, exit_code=None),)),
        Settle(Status.FAILED),
    ),
    "and one that vanished": (JOB, seen(ends=(ended(EndCause.UNKNOWN, exit_code=None),)), Settle(Status.FAILED)),
    "and one whose exit code nobody wrote down, since it may have done its work": (
        JOB,
        seen(ends=(ended(EndCause.MONITOR_LOST, exit_code=None),)),
        Settle(Status.FAILED),
    ),
    "a job that the machine cut off runs again": (
        JOB,
        seen(ends=(ended(EndCause.HOST_RESTARTED, exit_code=None),), route=FOR_JOB),
        PlanSandbox(2),
    ),
    "and one that the operator cut off": (
        JOB,
        seen(ends=(ended(EndCause.STOPPED, exit_code=143),), route=FOR_JOB),
        PlanSandbox(2),
    ),
    # an end
    "when it ended, visitors are kept away first": (
        UP,
        seen(sandbox=LISTENING, report=EXITED, route=OPEN),
        SetRoute(STARTING),
    ),
    "then it is recorded": (UP, seen(sandbox=LISTENING, report=EXITED), Action.RECORD_END),
    "also when it is gone altogether": (UP, seen(sandbox=LISTENING, report=ABSENT), Action.RECORD_END),
    "also when only a part of it is left": (UP, seen(sandbox=LISTENING, report=PARTIAL), Action.RECORD_END),
    "an end while it is wanted stopped is its own doing": (
        WANTED_STOPPED,
        seen(sandbox=LISTENING, report=EXITED, route=OPEN),
        SetRoute(STOPPED),
    ),
    "and while it is wanted gone": (
        WANTED_DELETED,
        seen(sandbox=LISTENING, report=EXITED, route=OPEN),
        Action.REMOVE_ROUTE,
    ),
    "an app that ended before it ever listened is given up": (
        ALWAYS_ON,
        seen(ends=(ended(EndCause.EXITED, listened=False),)),
        GiveUp(too_often=False),
    ),
    "after its first end it waits a second": (UP, seen(ends=(ended(EndCause.EXITED, 0.4),)), Wait(NOW + 0.6 * SECOND)),
    "then it is started again": (UP, seen(ends=(ended(EndCause.EXITED, 1),)), PlanSandbox(2)),
    "after the third it waits four seconds": (
        UP,
        seen(ends=(ended(EndCause.EXITED, 100), ended(EndCause.OUT_OF_MEMORY, 50), ended(EndCause.UNKNOWN, 0))),
        Wait(NOW + 4 * SECOND),
    ),
    "an end at an unknown time counts from its making": (
        UP,
        seen(ends=(replace(LISTENING, end=SandboxEnd(EndCause.UNKNOWN, None, None)),)),
        Wait(NOW + SECOND),
    ),
    "one that did not listen after a restart is restarted again": (
        UP,
        seen(ends=(ended(EndCause.EXITED, 60), ended(EndCause.EXITED, 30, listened=False))),
        PlanSandbox(3),
    ),
    "the fifth end in ten minutes is the last": (
        UP,
        seen(ends=tuple(ended(EndCause.EXITED, ago) for ago in (590, 400, 300, 200, 0))),
        GiveUp(too_often=True),
    ),
    "ends of long ago do not count": (
        UP,
        seen(ends=tuple(ended(EndCause.EXITED, ago) for ago in (600, 400, 300, 200, 100))),
        PlanSandbox(6),
    ),
    "restarts of the machine do not count": (
        UP,
        seen(ends=tuple(ended(EndCause.HOST_RESTARTED) for _ in range(9))),
        PlanSandbox(10),
    ),
    "a killed monitor delays nothing": (UP, seen(ends=(ended(EndCause.MONITOR_LOST, exit_code=None),)), PlanSandbox(2)),
    "nor does a kill for the memory of the machine": (
        UP,
        seen(ends=(*(ended(EndCause.EXITED, ago) for ago in (400, 300, 200, 100)), ended(EndCause.HOST_OUT_OF_MEMORY))),
        PlanSandbox(6),
    ),
    "faults of the machine delay the restart together": (
        UP,
        seen(ends=(*(ended(EndCause.MONITOR_LOST, ago) for ago in (30, 20)), ended(EndCause.HOST_OUT_OF_MEMORY))),
        Wait(NOW + 2 * SECOND),
    ),
    "nor before the app listened": (
        ALWAYS_ON,
        seen(ends=(ended(EndCause.MONITOR_LOST, listened=False, exit_code=None),)),
        PlanSandbox(2),
    ),
    "nor does it count as a crash": (
        UP,
        seen(ends=(*(ended(EndCause.EXITED, ago) for ago in (400, 300, 200, 100)), ended(EndCause.MONITOR_LOST))),
        PlanSandbox(6),
    ),
    "monitors that are killed again and again delay the restart": (
        UP,
        seen(ends=tuple(ended(EndCause.MONITOR_LOST, ago) for ago in (30, 20, 0))),
        Wait(NOW + 2 * SECOND),
    ),
    "at most a minute, and never give it up": (
        UP,
        seen(ends=tuple(ended(EndCause.MONITOR_LOST, ago) for ago in range(500, 40, -20))),
        PlanSandbox(24),
    ),
    "those killed long ago do not count": (
        UP,
        seen(ends=(ended(EndCause.MONITOR_LOST, 601), ended(EndCause.MONITOR_LOST))),
        PlanSandbox(3),
    ),
    "early attempts of a long run may be forgotten": (
        UP,
        replace(seen(), ends=(replace(ended(EndCause.EXITED, 900), attempt=70),)),
        PlanSandbox(71),
    ),
    "nor before it listened": (ALWAYS_ON, seen(ends=(ended(EndCause.HOST_RESTARTED, listened=False),)), PlanSandbox(2)),
    # a new run
    "a new run first keeps visitors away": (
        replace(UP, generation=2),
        seen(sandbox=LISTENING, report=REPORT, route=OPEN),
        SetRoute(STARTING),
    ),
    "then ends the old one": (replace(UP, generation=2), seen(sandbox=LISTENING, report=REPORT), StopSandbox()),
    "also one that was never started": (replace(UP, generation=2), seen(sandbox=PLANNED, report=ABSENT), StopSandbox()),
    "then starts": (replace(UP, generation=2), seen(), PlanSandbox(1)),
    # towards stopped
    "to stop, visitors are kept away first": (
        WANTED_STOPPED,
        seen(sandbox=LISTENING, report=REPORT, route=OPEN),
        SetRoute(STOPPED),
    ),
    "then it is stopped": (WANTED_STOPPED, seen(sandbox=LISTENING, report=REPORT, route=STOPPED), StopSandbox()),
    "then it has stopped": (WANTED_STOPPED, seen(route=STOPPED), Settle(Status.STOPPED)),
    "and stays so too": (replace(WANTED_STOPPED, status=Status.STOPPED), seen(route=STOPPED), Wait()),
    "a start that was called off is at rest only once nothing runs": (
        replace(WANTED_STOPPED, status=Status.STOPPED, generation=2),
        seen(route=STOPPED),
        Settle(Status.STOPPED),
    ),
    "a creation that was called off, too": (
        make_builder(desired=Desired.STOPPED),
        seen(route=STOPPED, version=NO_LAYER, disk_ready=False, disk_bundle=None),
        Settle(Status.STOPPED),
    ),
    "a failed one says so": (
        replace(WANTED_STOPPED, status=Status.FAILED),
        seen(sandbox=STARTED, report=REPORT),
        SetRoute(FAILED),
    ),
    "and is cleaned up": (
        replace(WANTED_STOPPED, status=Status.FAILED),
        seen(sandbox=STARTED, report=REPORT, route=FAILED),
        StopSandbox(),
    ),
    "and stays failed": (replace(WANTED_STOPPED, status=Status.FAILED), seen(route=FAILED), Wait()),
    "a completed job stays completed": (
        replace(JOB, desired=Desired.STOPPED, status=Status.COMPLETED, observed_generation=1),
        seen(route=FOR_JOB),
        Wait(),
    ),
    # towards deleted
    "to delete, the route goes first": (
        WANTED_DELETED,
        seen(sandbox=LISTENING, report=REPORT, route=OPEN),
        Action.REMOVE_ROUTE,
    ),
    "then the sandbox": (WANTED_DELETED, seen(sandbox=LISTENING, report=REPORT, route=None), StopSandbox()),
    "also one that was only planned": (WANTED_DELETED, seen(sandbox=PLANNED, report=ABSENT, route=None), StopSandbox()),
    "then everything else": (WANTED_DELETED, seen(route=None), Action.FORGET),
    "and there is no more": (
        replace(WANTED_DELETED, status=Status.DELETED),
        seen(route=None, disk_ready=False, disk_bundle=None),
        Wait(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_next_step(case: str) -> None:
    builder, observed, step = CASES[case]
    assert next_step(builder, observed) == step


@pytest.mark.parametrize("state", RouteState)
@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("desired", Desired)
def test_a_sandbox_never_goes_while_visitors_are_led_to_it(desired: Desired, status: Status, state: RouteState) -> None:
    builder = make_builder(desired=desired, status=status, generation=2)
    there = route(state, "10.0.0.2" if state is RouteState.OPEN else None)
    for report in (REPORT, EXITED, ABSENT, PARTIAL):
        step = next_step(builder, seen(sandbox=LISTENING, report=report, route=there))
        if isinstance(step, StopSandbox) or step is Action.RECORD_END:
            assert state is not RouteState.OPEN


def test_delays_double_up_to_a_minute() -> None:
    delays = [restart_delay(exits).total_seconds() for exits in range(12)]
    assert delays == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]

"""Step after step on a simulated world: whatever users, crashes and apps do, it ends where it was wanted.

The world is as simple as can be: a disk, a layer, sandboxes and a route, beside the records. A step touches the world
and then its record; the service may be killed in between, and users may change their minds in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.samples import BUILDER, DISK, NOW, make_builder

from builderd.builders.model import EXIT_WINDOW, MAX_EXITS, Builder, Desired, JobType, Status, recent_crashes
from builderd.core.ids import SandboxId
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
from builderd.sandboxes.model import MACHINE_CAUSES, EndCause, Sandbox, SandboxEnd, SandboxReport, SandboxState

BUNDLE = "b" * 64
#: What a start, five ends and a clean-up take at most.
MAX_STEPS = 80


class App(Enum):
    """Behaviour of an app once it is started."""

    GOOD = "listens, and goes on"
    DEAF = "never listens"
    HASTY = "ends before it listens"
    FRAIL = "listens, and ends"


Record = Callable[[], None]


@dataclass(slots=True)
class Box:
    """A sandbox in the world."""

    app: App
    ip: str
    half_made: bool = False
    end: SandboxEnd | None = None


@dataclass(slots=True)
class World:
    """``do`` carries a step out and answers with what is left to record."""

    builder: Builder
    now: datetime = NOW
    reviewed: bool = False
    layer: bool = False
    disk: bool = False
    on_disk: str | None = None
    boxes: dict[SandboxId, Box] = field(default_factory=dict)
    route: Route | None = None
    records: list[Sandbox] = field(default_factory=list)
    billed: bool = False
    waits: list[timedelta] = field(default_factory=list)
    starts: int = 0

    def look(self) -> Observation:
        open_record = next((record for record in self.records if record.end is None), None)
        return Observation(
            now=self.now,
            version=VersionState(1, 8000, BUNDLE, self.layer, review_due=not self.reviewed),
            candidate=None,
            trial=None,
            disk_ready=self.disk and self.billed,
            disk_bundle=self.on_disk,
            sandbox=open_record,
            report=self.report(open_record.id) if open_record else None,
            ends=tuple(
                one for one in self.records if one.end is not None and one.generation == self.builder.generation
            ),
            route=self.route,
        )

    def report(self, sandbox: SandboxId) -> SandboxReport:
        box = self.boxes.get(sandbox)
        if box is None:
            return SandboxReport(sandbox, None, SandboxState.ABSENT)
        if box.end:
            return SandboxReport(sandbox, BUILDER, SandboxState.EXITED, None, NOW, box.end)
        if box.half_made:
            return SandboxReport(sandbox, BUILDER, SandboxState.PARTIAL)
        return SandboxReport(sandbox, BUILDER, SandboxState.RUNNING, box.ip, NOW)

    def do(self, step: Step, app: App) -> Record:  # noqa: C901, PLR0912 -- one branch a step
        wanted, seen = self.builder, self.look()

        def same_generation() -> bool:
            return (self.builder.desired, self.builder.generation) == (wanted.desired, wanted.generation)

        def failed() -> None:
            if same_generation():
                self.settle(Status.FAILED)

        match step:
            case Review():
                return lambda: setattr(self, "reviewed", True)
            case Install():
                assert self.reviewed, "what was not reviewed may run while it is installed"
                self.layer = True
            case Action.CREATE_DISK:
                self.disk = True
                return lambda: setattr(self, "billed", True)
            case Action.PUT_BUNDLE:
                assert not self.running, "files are written under a running app"
                self.on_disk = BUNDLE
            case PlanSandbox(attempt):
                record = Sandbox(
                    SandboxId(f"{len(self.records):016x}"), BUILDER, 1, wanted.generation, attempt, self.now, DISK
                )
                return lambda: self.records.append(record) if same_generation() else None
            case Action.START_SANDBOX:
                return self.start(the(seen.sandbox), app)
            case Action.AWAIT_LISTENING:
                return self.await_listening(the(seen.sandbox), failed)
            case StopSandbox():
                self.end(the(seen.sandbox).id, EndCause.STOPPED)
                return self.record_end(the(seen.sandbox))
            case Action.RECORD_END:
                return self.record_end(the(seen.sandbox))
            case SetRoute(route):
                if route.destination is not None:
                    assert [box.ip for box in self.running] == [route.destination.ip], "visitors are led astray"
                self.route = route
            case Action.REMOVE_ROUTE:
                self.route = None
            case Action.FORGET:
                assert not self.running, "the disk goes under a running app"
                self.disk, self.on_disk = False, None
                return self.forget
            case Settle(Status.RUNNING):
                return lambda: self.run_settled() if same_generation() else None
            case Settle(status):
                return lambda: self.settle(status) if same_generation() else None
            case GiveUp():
                return failed
            case Wait(until):
                assert until is None or until > self.now
                if until is not None:
                    self.waits.append(until - self.now)
        return lambda: None

    @property
    def running(self) -> list[Box]:
        return [box for box in self.boxes.values() if box.end is None]

    def start(self, record: Sandbox, app: App) -> Record:
        box = self.boxes.get(record.id)
        if box is None or box.half_made:
            assert self.disk
            assert self.reviewed
            assert self.layer
            assert self.on_disk == BUNDLE
            assert all(other is box for other in self.running), "two sandboxes at once"
            self.starts += 1
            box = self.boxes[record.id] = Box(app, f"10.0.0.{self.starts % 250 + 2}")
            if app is App.HASTY:
                self.end(record.id, EndCause.EXITED)
        return lambda: self.save(replace(record, ip=box.ip, started_at=self.now))

    def await_listening(self, record: Sandbox, failed: Record) -> Record:
        box = self.boxes.get(record.id)
        if box is None or box.end is not None:
            return lambda: None
        if box.app is App.DEAF:
            return failed
        if box.app is App.FRAIL:
            self.end(record.id, EndCause.EXITED)
        return lambda: self.save(replace(record, listening_at=self.now))

    def record_end(self, record: Sandbox) -> Record:
        end = self.report(record.id).end or SandboxEnd(EndCause.UNKNOWN, None, None)

        def write() -> None:
            self.save(replace(record, end=replace(end, at=end.at or self.now)))
            box = self.boxes.pop(record.id, None)
            led_to = self.route.destination.ip if self.route and self.route.destination else None
            assert box is None or box.ip != led_to, "visitors are led to an address that is free"

        return write

    def end(self, sandbox: SandboxId, cause: EndCause) -> None:
        box = self.boxes.get(sandbox)
        if box is not None and box.end is None:
            box.end = SandboxEnd(cause, None if cause is not EndCause.EXITED else 1, self.now)

    def save(self, record: Sandbox) -> None:
        index = next(i for i, one in enumerate(self.records) if one.id == record.id)
        self.records[index] = record

    def settle(self, status: Status) -> None:
        run = self.builder.generation
        self.builder = replace(self.builder, status=status, desired=Desired.STOPPED, observed_generation=run)

    def run_settled(self) -> None:
        self.builder = replace(self.builder, status=Status.RUNNING, observed_generation=self.builder.generation)

    def forget(self) -> None:
        self.billed = False
        self.builder = replace(self.builder, status=Status.DELETED)

    # What users wish

    def want_run(self) -> None:
        rests = self.builder.status in (Status.FAILED, Status.COMPLETED)
        status = Status.STOPPED if rests else self.builder.status
        self.builder = replace(
            self.builder, desired=Desired.RUNNING, generation=self.builder.generation + 1, status=status
        )

    def wish(self, wish: str) -> None:
        if self.builder.desired is Desired.DELETED:
            return
        if wish == "restart" or (wish == "start" and self.builder.desired is not Desired.RUNNING):
            self.want_run()
        if wish == "stop" and self.builder.desired is Desired.RUNNING:
            self.builder = replace(self.builder, desired=Desired.STOPPED)
        if wish == "delete":
            self.builder = replace(self.builder, desired=Desired.DELETED)


def the(sandbox: Sandbox | None) -> Sandbox:
    assert sandbox is not None, "the step was chosen because there is one"
    return sandbox


apps = st.sampled_from(App)
wishes = st.sampled_from(["start", "stop", "restart", "delete"])


class Life(RuleBasedStateMachine):
    """One builder's life, with everything that may happen to it."""

    world: World

    @initialize(job=st.booleans(), is_up=st.booleans())
    def create(self, job: bool, is_up: bool) -> None:
        self.world = World(make_builder(job_type=JobType.ONE_TIME if job else JobType.ALWAYS_ON))
        if is_up:
            run_down(self.world, App.GOOD)

    @rule(app=apps)
    def take_a_step(self, app: App) -> None:
        self.world.do(next_step(self.world.builder, self.world.look()), app)()

    @rule(app=apps, steps=st.integers(2, 12))
    def take_steps(self, app: App, steps: int) -> None:
        for _ in range(steps):
            self.take_a_step(app)

    @rule(app=apps)
    def be_killed_after_the_deed(self, app: App) -> None:
        self.world.do(next_step(self.world.builder, self.world.look()), app)

    @rule(app=apps, wish=wishes)
    def change_the_mind_after_the_deed(self, app: App, wish: str) -> None:
        record = self.world.do(next_step(self.world.builder, self.world.look()), app)
        self.world.wish(wish)
        record()

    @rule(wish=wishes)
    def wish(self, wish: str) -> None:
        self.world.wish(wish)

    @precondition(lambda self: self.world.running)
    @rule(cause=st.sampled_from([EndCause.EXITED, EndCause.OUT_OF_MEMORY, *sorted(MACHINE_CAUSES)]))
    def app_ends(self, cause: EndCause) -> None:
        for sandbox in list(self.world.boxes):
            self.world.end(sandbox, cause)

    @precondition(lambda self: self.world.running)
    @rule(traces=st.sampled_from(["ended", "half", "none"]))
    def machine_restarts(self, traces: str) -> None:
        for sandbox in list(self.world.boxes):
            if traces == "ended":
                self.world.end(sandbox, EndCause.HOST_RESTARTED)
            elif traces == "half":
                self.world.boxes[sandbox].half_made = True
            else:
                del self.world.boxes[sandbox]

    @precondition(lambda self: self.world.builder.status is not Status.DELETED)
    @rule(state=st.sampled_from([None, RouteState.OPEN, RouteState.STOPPED]))
    def the_route_is_an_old_one(self, state: RouteState | None) -> None:
        astray = Address("10.9.9.9", 8000) if state is RouteState.OPEN else None
        self.world.route = Route(self.world.builder.host, state, astray) if state else None

    @rule(seconds=st.integers(0, 700))
    def time_passes(self, seconds: int) -> None:
        self.world.now += timedelta(seconds=seconds)

    @invariant()
    def one_sandbox_at_most_is_recorded(self) -> None:
        assert sum(record.end is None for record in self.world.records) <= 1
        assert len(self.world.running) <= 1

    def teardown(self) -> None:
        for app in App:
            self.ends_where_it_was_wanted(app)

    def ends_where_it_was_wanted(self, app: App) -> None:
        """Check that it settles in the desired state while nothing disturbs it."""
        world = replace(self.world, records=list(self.world.records))
        world.boxes = {sandbox: replace(box) for sandbox, box in self.world.boxes.items()}
        wanted = world.builder
        for _ in range(MAX_STEPS):
            step = next_step(world.builder, world.look())
            if isinstance(step, Wait) and step.until is not None:
                world.now = step.until
            elif step != Wait():
                world.do(step, app)()
            elif world.builder.job_type is JobType.ONE_TIME and world.running:
                world.end(next(iter(world.boxes)), EndCause.EXITED)
            else:
                break
        else:
            raise AssertionError("it never comes to rest")
        self.check(world, wanted)

    def check(self, world: World, wanted: Builder) -> None:
        assert world.builder.settled
        match wanted.desired, world.builder.status:
            case Desired.DELETED, status:
                assert status is Status.DELETED
                assert (world.disk, world.on_disk, world.billed, world.route) == (False, None, False, None)
                assert not world.boxes
            case _, Status.RUNNING:
                assert wanted.desired is Desired.RUNNING
                assert wanted.job_type is JobType.ALWAYS_ON
                (box,) = world.boxes.values()
                assert box.app in (App.GOOD, App.FRAIL)  # one that is frail only sometimes
                assert next(record.generation for record in world.records if record.end is None) == wanted.generation
                assert world.route is not None
                assert world.route.destination is not None
                assert world.route.destination.ip == box.ip
            case _, status:
                assert status in (Status.STOPPED, Status.FAILED, Status.COMPLETED)
                assert wanted.desired is Desired.STOPPED or status is not Status.STOPPED
                assert not world.boxes
                assert world.route is not None
                assert world.route.state in (RouteState.STOPPED, RouteState.FAILED, RouteState.JOB)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=100, stateful_step_count=40)


def run_down(world: World, app: App) -> None:
    """Run until it rests or is up."""
    for _ in range(MAX_STEPS):
        step = next_step(world.builder, world.look())
        if isinstance(step, Wait):
            if step.until is None:
                return
            world.waits.append(step.until - world.now)
            world.now = step.until
        else:
            world.do(step, app)()
    raise AssertionError("it never comes to rest")


def test_a_good_app_comes_up() -> None:
    world = World(make_builder())
    run_down(world, App.GOOD)
    assert world.builder.status is Status.RUNNING
    assert world.starts == 1


def test_an_app_that_ends_again_and_again_is_given_up_after_growing_delays() -> None:
    world = World(make_builder())
    run_down(world, App.FRAIL)
    assert world.builder.status is Status.FAILED
    assert world.starts == MAX_EXITS
    assert [wait.total_seconds() for wait in world.waits] == [1, 2, 4, 8]
    assert len(recent_crashes(world.records, world.now)) == MAX_EXITS


def test_an_app_that_ends_rarely_is_restarted_for_ever() -> None:
    world = World(make_builder())
    run_down(world, App.GOOD)
    for _ in range(4 * MAX_EXITS):
        world.now += EXIT_WINDOW / 4
        world.end(next(iter(world.boxes)), EndCause.EXITED)
        run_down(world, App.GOOD)
        assert world.builder.status is Status.RUNNING


def test_an_app_that_never_comes_up_is_tried_once() -> None:
    for app in (App.HASTY, App.DEAF):
        world = World(make_builder())
        run_down(world, app)
        assert (world.builder.status, world.starts) == (Status.FAILED, 1)

"""Record of the spans that really ran, independent of ledger and events, and the sums that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

from tests.fakes.engine import FakeEngine

from builderd.core.ids import BuilderId, DiskId, SandboxId
from builderd.events.model import Event
from builderd.sandboxes.model import EndCause, SandboxReport, SandboxSpec

RUNNING, FROZEN = "running", "frozen"
SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Span:
    """``end`` None: it goes on."""

    state: str
    start: datetime
    end: datetime | None
    version: int = 0


@dataclass
class Witness:
    """Stands beside a fake engine. ``turns``: (sandbox, what it does from then on, when).

    ``tick`` is called before each freeze and thaw: where the clock of a test stands still, two could come at one time.
    """

    engine: FakeEngine
    tick: Callable[[], None] = lambda: None
    disks: dict[DiskId, datetime] = field(default_factory=dict)
    turns: list[tuple[SandboxId, str | None, datetime]] = field(default_factory=list)
    owners: dict[SandboxId, BuilderId] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("start", "end", "freeze", "thaw", "create_disk"):
            setattr(self.engine, name, getattr(self, name)(getattr(self.engine, name)))

    def start(self, real: Any) -> Any:
        async def start(spec: SandboxSpec) -> SandboxReport:
            is_new = spec.id not in self.engine.known
            report: SandboxReport = await real(spec)
            if is_new:
                self.owners[spec.id] = spec.builder_id
                self._turn(spec.id, RUNNING)
            return report

        return start

    def end(self, real: Any) -> Any:
        def end(sandbox: SandboxId, cause: EndCause = EndCause.EXITED, exit_code: int | None = 0) -> None:
            if self.engine.known[sandbox].end is None:
                self._turn(sandbox, None)
            real(sandbox, cause, exit_code)

        return end

    def freeze(self, real: Any) -> Any:
        return self._turning(real, FROZEN)

    def thaw(self, real: Any) -> Any:
        return self._turning(real, RUNNING)

    def create_disk(self, real: Any) -> Any:
        async def create_disk(disk: DiskId, size: int) -> None:
            await real(disk, size)
            self.disks.setdefault(disk, self.engine._now())

        return create_disk

    def _turning(self, real: Any, state: str) -> Any:
        async def turn(sandbox: SandboxId) -> SandboxReport:
            found = self.engine.known.get(sandbox)
            before = found.frozen if found else False
            self.tick()
            report: SandboxReport = await real(sandbox)
            if found and found.end is None and found.frozen != before:
                self._turn(sandbox, state)
            return report

        return turn

    def _turn(self, sandbox: SandboxId, state: str | None) -> None:
        self.turns.append((sandbox, state, self.engine._now()))

    def spans(self, builder: BuilderId) -> Sequence[Span]:
        """Return the spans in which its sandboxes really ran."""
        mine = [sandbox for sandbox, owner in self.owners.items() if owner == builder]
        return [span for sandbox in mine for span in _spans((s, t) for one, s, t in self.turns if one == sandbox)]


def told(events: Iterable[Event]) -> Sequence[Span]:
    """Return the spans that the events of a builder report."""
    spans: list[Span] = []
    states = {"sandbox.started": RUNNING, "sandbox.frozen": FROZEN, "sandbox.thawed": RUNNING, "sandbox.ended": None}
    turns: dict[str, list[tuple[str | None, datetime]]] = {}
    versions: dict[str, int] = {}
    for event in events:
        if event.type in states:
            sandbox = event.details["sandbox"]
            turns.setdefault(sandbox, []).append((states[event.type], event.time))
            versions[sandbox] = event.details["version"]
    for sandbox, mine in turns.items():
        spans += [Span(one.state, one.start, one.end, versions[sandbox]) for one in _spans(mine)]
    return spans


def _spans(turns: Iterable[tuple[str | None, datetime]]) -> Iterator[Span]:
    state: str | None = None
    since: datetime | None = None
    for following, at in turns:
        if state is not None and since is not None and at > since:
            yield Span(state, since, at)
        state, since = following, at
    if state is not None and since is not None:
        yield Span(state, since, None)


def microseconds(start: datetime, end: datetime | None, now: datetime, within: tuple[datetime, datetime]) -> int:
    """Return the time in [start, end), as far as it lies in the window."""
    lower, upper = max(start, within[0]), min(end or now, within[1])
    if lower >= upper:
        return 0
    return (upper - lower) // timedelta(microseconds=1)


def paid(spans: Iterable[tuple[int, Fraction]]) -> Fraction:
    """The sum of microseconds times hourly rates, in the currency."""
    return sum((Fraction(time) * rate for time, rate in spans), Fraction(0)) / 3_600_000_000


Rates = Mapping[tuple[int, str], Fraction]

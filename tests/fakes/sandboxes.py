"""Sandboxes in memory: a ``Behaviour`` scripts what a started app does, report by report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from builderd.core.ids import SandboxId
from builderd.sandboxes.model import SandboxEnd, SandboxReport, SandboxSpec, SandboxState


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Behaviour of an app once it is started.

    It listens on ``address`` and ``port`` (None: the spec's own), or on ``sockets``, from the ``listens_at``-th look on
    (0: at once, None: never), and ends at the ``exits_at``-th look (None: never). ``lines`` are in its log from the
    start.
    """

    address: str = "0.0.0.0"
    port: int | None = None
    sockets: tuple[tuple[str, int], ...] = ()
    listens_at: int | None = 0
    exits_at: int | None = None
    exit_code: int = 0
    out_of_memory: bool = False
    lines: tuple[str, ...] = ()


@dataclass(slots=True)
class FakeSandbox:
    spec: SandboxSpec
    behaviour: Behaviour
    ip: str
    started_at: datetime
    looks: int = 0
    end: SandboxEnd | None = None
    half_made: bool = False
    cpu_seconds: float = 0.1
    frozen: bool = False
    frozen_at: datetime | None = None
    thawed_at: datetime | None = None
    member: str = ""

    def report(self) -> SandboxReport:
        """Return the engine's report on it."""
        alive = SandboxState.FROZEN if self.frozen else SandboxState.RUNNING
        report = SandboxReport(
            id=self.spec.id,
            builder_id=self.spec.builder_id,
            state=SandboxState.EXITED if self.end else alive,
            ip=None if self.end else self.ip,
            started_at=self.started_at,
            end=self.end,
            frozen_at=self.frozen_at,
            thawed_at=self.thawed_at,
            out_of_memory=self.behaviour.out_of_memory and self.end is not None,
            member=self.member,
        )
        if self.half_made and not self.end:
            return replace(report, state=SandboxState.PARTIAL, ip=None, started_at=None)
        return report


def absent_report(sandbox: SandboxId) -> SandboxReport:
    """Return the engine's report on a sandbox that does not exist."""
    return SandboxReport(id=sandbox, builder_id=None, state=SandboxState.ABSENT)

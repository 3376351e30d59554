"""Sandboxes: the apps that run, and the processes beside them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol

from builderd.domain.ids import SandboxId
from builderd.domain.processes import ProcessSpec
from builderd.domain.sandboxes import Listening, SandboxEffort, SandboxReport, SandboxSpec, SandboxUsage
from builderd.domain.versions import Isolation
from builderd.ports.processes import Process


class Sandboxes(Protocol):
    @property
    def gateway(self) -> str:
        """Address at which a sandbox reaches the service itself (the host of ``BUILDERD_URL``)."""

    @property
    def further_address(self) -> str:
        """Address of this machine at which sandboxes on other members of a cluster reach the service; "" without."""

    def supports(self, isolation: Isolation) -> str | None:
        """Return None when sandboxes of this isolation can run here, else why not and what to do."""

    def prewarm(self) -> None:
        """Prepare for a start or command expected within moments; an engine may ignore it. Returns at once."""

    async def start(self, spec: SandboxSpec) -> SandboxReport:
        """Start the sandbox, or find it running already. A half-made one of the same id is removed first."""

    async def report(self, sandbox: SandboxId) -> SandboxReport:
        """Return the present state of this sandbox; ``absent`` when there is none."""

    async def list_sandboxes(self) -> Sequence[SandboxReport]:
        """Return all sandboxes of this service, in any state."""

    def watch_port(self, sandbox: SandboxId) -> AbstractContextManager[Callable[[], bool]]:
        """Yield a check of the sandbox's port that costs next to nothing, for the wait until an app listens.

        It returns False while nothing can be reached there. After True, ``listening`` tells.
        """

    async def listening(self, sandbox: SandboxId) -> Listening:
        """Return the TCP sockets that listen inside; empty when it does not run."""

    async def freeze(self, sandbox: SandboxId) -> SandboxReport:
        """Freeze its processes, and give its memory back to the machine as far as possible.

        Its sockets stay open and accept connections; nothing answers on them. Idempotent. One that does not run is only
        reported. ``stop`` and ``open_process`` thaw it first.
        """

    async def thaw(self, sandbox: SandboxId) -> SandboxReport:
        """Resume its processes. Idempotent; one that does not run is only reported."""

    async def stop(self, sandbox: SandboxId, grace_seconds: float) -> SandboxReport:
        """Send TERM, then KILL after the grace time. Return how it ended. Idempotent."""

    async def remove(self, sandbox: SandboxId) -> None:
        """Remove an ended sandbox, except its log. Idempotent."""

    def exits(self) -> AsyncIterator[SandboxId]:
        """Yield a sandbox's id soon after its main process ended, for as long as it is iterated.

        A sandbox whose monitor was killed (the process that keeps its log and records its end) is ended as a whole,
        also when that happened while no service ran, and ends by ``MONITOR_LOST``.
        """

    def open_process(self, sandbox: SandboxId, spec: ProcessSpec) -> AbstractAsyncContextManager[Process]:
        """Run a program beside the app for as long as the context lasts.

        Entering raises ``InvalidState`` when the sandbox does not run, ``ValidationFailed`` when ``cwd`` is no folder
        there. Leaving closes its streams: a process that does not end within a moment is killed with all that it
        started. Background processes of a program that ended by itself continue.
        """

    async def usage(self, sandbox: SandboxId) -> SandboxUsage | None:
        """Return its usage, or None when it does not run. 0 bytes of disk when the disk is gone."""

    async def usages(
        self, sandboxes: Collection[SandboxId], max_age: float = 0
    ) -> Mapping[SandboxId, SandboxUsage | Exception]:
        """Return the usage of those that run, or the error of reading it. Many cost less than each by ``usage``.

        Readings that an engine has from the last ``max_age`` seconds are as good; where they cost much, it may give one
        of up to a minute. One with an ``age_seconds`` may be some seconds older than it says, its bytes of disk some
        minutes, and its CPU time may be counted in another way than by ``usage``.
        """

    async def effort(self, sandbox: SandboxId) -> SandboxEffort | None:
        """Return its CPU time and whether it works now, or None when it does not run. Costs less than ``usage``."""

"""The engine: what runs sandboxes, keeps their disks and makes layers. One machine, or a cluster of them.

Nothing here presumes that a disk, a layer or a log is a path on this host.
All methods raise ``EngineUnavailable`` when the engine does not answer, and ``NoCapacity`` when it is full.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from builderd.domain.bundles import Bundle
from builderd.domain.ids import BuilderId, DiskId, SandboxId
from builderd.domain.layers import BuildOutcome, BuildStep, LayerPlan
from builderd.domain.logs import LogPage
from builderd.domain.processes import ProcessSpec
from builderd.domain.quotas import Capacity
from builderd.domain.sandboxes import Listening, SandboxReport, SandboxSpec, SandboxUsage
from builderd.domain.versions import Isolation
from builderd.ports.disk_files import DiskFiles
from builderd.ports.processes import Process

#: Told one line of progress at a time; must not block.
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Readiness:
    """``ready`` once sandboxes can be started; ``message`` says what is being made, or what is wrong."""

    ready: bool
    message: str


@dataclass(frozen=True, slots=True)
class Collected:
    """What was taken away: the keys of layers, the names of bases, and of how many disks the scratch."""

    layers: Sequence[str]
    bases: Sequence[str]
    scratch: int


@dataclass(frozen=True, slots=True)
class DiskReport:
    """``bundle_hash`` is the bundle that was last put on the disk completely, None before the first."""

    id: DiskId
    bundle_hash: str | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Tool:
    """A trusted program that works on a disk where the disk is, such as restic; it is not an app.

    It runs as the user who owns the disk's files, in a sandbox of its own, and sees the content of ``/app`` of the
    disk at ``/disk`` (read-only unless ``writable``), ``folders`` at their names below ``/`` (of ``TOOL_FOLDERS``), the
    base, and nothing else. ``folders`` are folders of the machine of the service, made if missing, and written to by
    tools alone; an engine whose disks lie elsewhere raises ``EngineUnavailable``. ``reads_all`` lets it read files
    whose own mode would not. With ``network`` it reaches what this machine reaches, otherwise nothing. ``env`` may
    hold secrets, so it is told to nobody; ``argv`` may not. ``hostname`` is what it takes this machine's name for.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    disk: DiskId | None = None
    writable: bool = False
    reads_all: bool = False
    folders: Mapping[str, Path] = field(default_factory=dict)
    network: bool = False
    hostname: str = "tool"
    timeout_seconds: float = 3600


#: Where a tool may see folders of the service's machine.
TOOL_FOLDERS = ("repository", "cache", "work")


@dataclass(frozen=True, slots=True)
class ToolExit:
    """``exit_code`` is not 0 when it ran out of memory or time."""

    exit_code: int
    out_of_memory: bool = False
    timed_out: bool = False


class Engine(DiskFiles, Protocol):
    async def prepare(self, progress: Progress) -> None:
        """Make what the engine needs once (base, store, network). Idempotent; may take a minute."""

    def readiness(self) -> Readiness:
        """What ``prepare`` has reached."""

    def supports(self, isolation: Isolation) -> str | None:
        """None when sandboxes of this isolation can run here, else why not and what to do."""

    def prewarm(self) -> None:
        """Something is likely to be started within moments: an engine may get ready, and need not. Returns at once."""

    def capacity(self) -> Capacity:
        """What there is for builders, as far as it is known by now: nothing is waited for."""

    @property
    def base_id(self) -> str:
        """Names the base root file system; part of every layer's key."""

    @property
    def gateway(self) -> str:
        """The address at which a sandbox reaches the service itself (the host of ``BUILDERD_URL``)."""

    # Layers

    async def has_layer(self, key: str) -> bool:
        """Whether a complete layer of this key exists."""

    async def build_layer(self, plan: LayerPlan, progress: Progress) -> BuildOutcome:
        """Run the plan's steps in build sandboxes; all or nothing. Two calls for one key make one layer."""

    async def polish_layer(self, key: str, step: BuildStep) -> BuildOutcome:
        """Run the step on a clone of the layer that then takes its place for sandboxes started later."""

    # Housekeeping

    async def collect(self, keep: Collection[str], unused_seconds: float) -> Collected:
        """Take away layers that are not to be kept, bases, and what ended sandboxes left behind.

        Only what no sandbox sees and nobody asked for (``has_layer``, ``start``) in so long. Whoever asks for a layer
        meanwhile either gets it, and it stays, or is told that there is none.
        """

    def is_tight(self) -> bool:
        """Whether space is running out, so that it should be collected earlier."""

    # Disks

    async def create_disk(self, disk: DiskId, size_bytes: int) -> None:
        """An empty disk with a hard limit; one that exists gets the limit. Idempotent. Raises ``NoCapacity``."""

    async def disk(self, disk: DiskId) -> DiskReport | None:
        """What is on the disk, or None when there is none."""

    async def put_bundle(self, disk: DiskId, bundle: Bundle, replaced: Bundle | None = None) -> None:
        """Write the files into the disk's ``/app`` and record the bundle's hash last. Idempotent.

        Where another bundle is ``replaced``, only what differs between the two is written or removed
        (``domain.bundles.changes``): what the app made of the other files stays, and so do those that it made itself.
        Never follows a link out of the disk. Must not be called while a sandbox runs on it.
        """

    async def mark_bundle(self, disk: DiskId, bundle_hash: str) -> None:
        """Record that the bundle is on the disk already, with what its app made of it since."""

    async def clone_disk(self, source: DiskId, target: DiskId, size_bytes: int) -> None:
        """An independent copy with a limit of its own, made in an instant. Idempotent.

        A sandbox that runs on the source stands still meanwhile, for some milliseconds, so that the copy is of one
        moment. When the service dies in between, the next one has it go on.
        """

    async def delete_disk(self, disk: DiskId) -> None:
        """Idempotent."""

    async def run_tool(self, tool: Tool, output: Progress) -> ToolExit:
        """Run it to its end, telling each line that it prints. Whatever happens, nothing of it is left afterwards.

        What a service that died left running is ended by the next one before it is ready. Raises ``NotFound`` without
        the disk, ``InvalidState`` for a writable disk that a sandbox runs on, ``EngineUnavailable`` when the program
        is not there.
        """

    # Sandboxes

    async def start(self, spec: SandboxSpec) -> SandboxReport:
        """Start the sandbox, or find it running already. A half-made one of the same id is cleaned up first."""

    async def report(self, sandbox: SandboxId) -> SandboxReport:
        """What there is of this sandbox now; ``absent`` when there is nothing."""

    async def list_sandboxes(self) -> Sequence[SandboxReport]:
        """All sandboxes that this engine holds for this service, in any state."""

    async def listening(self, sandbox: SandboxId) -> Listening:
        """The TCP sockets that listen inside; empty when it does not run."""

    async def freeze(self, sandbox: SandboxId) -> SandboxReport:
        """Have its processes stand still, and give its memory back to the machine as far as that can be done.

        Its sockets stay open and take connections; nothing answers on them. Idempotent. One that does not run is only
        reported. ``stop`` and ``execute`` thaw it first.
        """

    async def thaw(self, sandbox: SandboxId) -> SandboxReport:
        """Have it go on where it stood still. Idempotent; one that does not run is only reported."""

    async def stop(self, sandbox: SandboxId, grace_seconds: float) -> SandboxReport:
        """TERM, then KILL after the grace time. Returns how it ended. Idempotent."""

    async def remove(self, sandbox: SandboxId) -> None:
        """Take away what is left of an ended sandbox but its log. Idempotent."""

    def exits(self) -> AsyncIterator[SandboxId]:
        """Yields a sandbox's id soon after its main process ended, for as long as it is iterated.

        A sandbox whose monitor was killed (what keeps its log and writes down its end) is ended as a whole, also where
        that happened while no service ran, and ends by ``MONITOR_LOST``.
        """

    def open_process(self, sandbox: SandboxId, spec: ProcessSpec) -> AbstractAsyncContextManager[Process]:
        """Run a program beside the app for as long as the context lasts.

        Entering raises ``InvalidState`` when the sandbox does not run, ``ValidationFailed`` when ``cwd`` is no folder
        there. Leaving hangs up: a process that does not end of that within a moment is killed with all that it started.
        What it left behind when it ended by itself goes on.
        """

    async def usage(self, sandbox: SandboxId) -> SandboxUsage | None:
        """What it uses, or None when it does not run. 0 bytes of disk where the disk is gone."""

    async def read_log(
        self,
        sandbox: SandboxId,
        cursor: str = "",
        *,
        tail: int | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> LogPage:
        """Complete lines after the cursor ("" is the beginning), oldest first.

        With ``tail`` only so many of the last ones, which costs no more than they do. With ``since`` those from before
        are passed over, but for a few. With ``limit`` at most so many of the first of all these, fewer where they are
        long: a page.
        """

    async def delete_logs(self, builder: BuilderId) -> None:
        """Remove the logs of all sandboxes of this builder. Idempotent."""

    async def down(self) -> None:
        """Stop every sandbox and give back to the host what it was given (network, mounts, cgroups)."""

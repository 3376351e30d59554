"""Engine port: runs sandboxes, keeps their disks and makes layers, on one machine or a cluster.

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

#: Called with one line of progress at a time; must not block.
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Readiness:
    """Readiness of the engine. ``ready``: sandboxes can start; ``message``: what is being made or what is wrong."""

    ready: bool
    message: str


@dataclass(frozen=True, slots=True)
class Collected:
    """Result of a collection: keys of removed layers, names of removed bases, number of removed scratch folders."""

    layers: Sequence[str]
    bases: Sequence[str]
    scratch: int


@dataclass(frozen=True, slots=True)
class DiskReport:
    """State of a disk. ``bundle_hash``: bundle last written completely, None before the first."""

    id: DiskId
    bundle_hash: str | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Tool:
    """Trusted program, such as restic, that works on a disk where the disk is; not an app.

    It runs as the user who owns the disk's files, in a sandbox of its own, and sees the content of ``/app`` of the
    disk at ``/disk`` (read-only unless ``writable``), ``folders`` at their names below ``/`` (of ``TOOL_FOLDERS``), the
    base, and nothing else. ``folders`` are folders of the machine of the service, made if missing, and written to by
    tools alone; an engine whose disks lie elsewhere raises ``EngineUnavailable``. ``reads_all`` lets it read files
    whose own mode would not. With ``network`` it reaches what this machine reaches, otherwise nothing. ``env`` may
    hold secrets and is never logged; ``argv`` may not. ``hostname`` is the host name that it sees.
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


#: Names below ``/`` at which a tool may see folders of the service's machine.
TOOL_FOLDERS = ("repository", "cache", "work")


@dataclass(frozen=True, slots=True)
class ToolExit:
    """Exit of a tool. ``exit_code`` is not 0 when it ran out of memory or time."""

    exit_code: int
    out_of_memory: bool = False
    timed_out: bool = False


class Engine(DiskFiles, Protocol):
    async def prepare(self, progress: Progress) -> None:
        """Create what the engine needs (base, store, network). Idempotent; may take a minute."""

    def readiness(self) -> Readiness:
        """Return the progress or result of ``prepare``."""

    def supports(self, isolation: Isolation) -> str | None:
        """Return None when sandboxes of this isolation can run here, else why not and what to do."""

    def prewarm(self) -> None:
        """Prepare for a start or command expected within moments; an engine may ignore it. Returns at once."""

    def capacity(self) -> Capacity:
        """Return the capacity for builders as known now, without waiting."""

    @property
    def base_id(self) -> str:
        """Name of the base root file system; part of every layer's key."""

    @property
    def gateway(self) -> str:
        """Address at which a sandbox reaches the service itself (the host of ``BUILDERD_URL``)."""

    # Layers

    async def has_layer(self, key: str) -> bool:
        """Return True when a complete layer of this key exists."""

    async def build_layer(self, plan: LayerPlan, progress: Progress) -> BuildOutcome:
        """Run the plan's steps in build sandboxes; all or nothing. Two calls for one key make one layer."""

    async def polish_layer(self, key: str, step: BuildStep) -> BuildOutcome:
        """Run the step on a clone of the layer, which replaces it for sandboxes started later."""

    # Housekeeping

    async def collect(self, keep: Collection[str], unused_seconds: float) -> Collected:
        """Remove layers that are not in ``keep``, bases, and files of ended sandboxes.

        Only what no sandbox has mounted and no call (``has_layer``, ``start``) used for ``unused_seconds``. A
        concurrent call either gets a layer, which then stays, or finds that there is none.
        """

    def is_tight(self) -> bool:
        """Return True when space runs out and should be collected early."""

    # Disks

    async def create_disk(self, disk: DiskId, size_bytes: int) -> None:
        """Create an empty disk with a hard limit; an existing one gets the limit. Idempotent. Raises ``NoCapacity``."""

    async def disk(self, disk: DiskId) -> DiskReport | None:
        """Return the state of the disk, or None when there is none."""

    async def put_bundle(self, disk: DiskId, bundle: Bundle, replaced: Bundle | None = None) -> None:
        """Write the files into the disk's ``/app`` and record the bundle's hash last. Idempotent.

        Where another bundle is ``replaced``, only what differs between the two is written or removed
        (``domain.bundles.changes``): the app's changes to other files stay, and so do files that it made.
        Never follows a link out of the disk. Must not be called while a sandbox runs on it.
        """

    async def mark_bundle(self, disk: DiskId, bundle_hash: str) -> None:
        """Record that the bundle is on the disk already, with the app's later changes."""

    async def clone_disk(self, source: DiskId, target: DiskId, size_bytes: int) -> None:
        """Make an independent copy with a limit of its own, instantly. Idempotent.

        A sandbox that runs on the source is frozen meanwhile, for some milliseconds, so that the copy is consistent.
        When the service dies in between, the next one thaws it.
        """

    async def delete_disk(self, disk: DiskId) -> None:
        """Delete the disk. Idempotent."""

    async def run_tool(self, tool: Tool, output: Progress) -> ToolExit:
        """Run it to its end, passing on each line that it prints. Nothing of it is left afterwards.

        A tool left running by a service that died is ended by the next one before it is ready. Raises ``NotFound``
        without the disk, ``InvalidState`` for a writable disk that a sandbox runs on, ``EngineUnavailable`` when the
        program is not there.
        """

    # Sandboxes

    async def start(self, spec: SandboxSpec) -> SandboxReport:
        """Start the sandbox, or find it running already. A half-made one of the same id is removed first."""

    async def report(self, sandbox: SandboxId) -> SandboxReport:
        """Return the present state of this sandbox; ``absent`` when there is none."""

    async def list_sandboxes(self) -> Sequence[SandboxReport]:
        """Return all sandboxes of this service, in any state."""

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
        started. Background processes of a program that ended by itself go on.
        """

    async def usage(self, sandbox: SandboxId) -> SandboxUsage | None:
        """Return its usage, or None when it does not run. 0 bytes of disk when the disk is gone."""

    async def read_log(
        self,
        sandbox: SandboxId,
        cursor: str = "",
        *,
        tail: int | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> LogPage:
        """Return complete lines after the cursor ("" is the beginning), oldest first.

        ``tail``: only so many of the last lines, at a cost that grows with them only. ``since``: without earlier lines,
        except for a few. ``limit``: a page, at most so many of the first of these lines, fewer when they are long.
        """

    async def delete_logs(self, builder: BuilderId) -> None:
        """Remove the logs of all sandboxes of this builder. Idempotent."""

    async def down(self) -> None:
        """Stop every sandbox and remove everything from the host: network, mounts, control groups."""

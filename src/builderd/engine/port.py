"""Engine port: runs sandboxes, keeps their disks and makes layers, on one machine or a cluster.

An ``Engine`` has six parts: ``Sandboxes``, ``Disks``, ``DiskFiles``, ``Layers``, ``Logs``, ``Tools``. Code that needs
one takes that one. Nothing here presumes that a disk, a layer or a log is a path on this host.
All methods raise ``EngineUnavailable`` when the engine does not answer, and ``NoCapacity`` when it is full.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from builderd.code.model import Bundle
from builderd.code.port import DiskFiles
from builderd.core.ids import BuilderId, DiskId, SandboxId
from builderd.core.members import MemberReport
from builderd.core.resources import Capacity, MachineUse
from builderd.dependencies.model import BuildOutcome, LayerPlan, StoredLayers
from builderd.engine.inventory import EngineInventory, PreflightCheck
from builderd.executions.model import ProcessSpec, Window
from builderd.sandboxes.model import (
    Listening,
    LogMatch,
    LogPage,
    LogPiece,
    SandboxReport,
    SandboxSpec,
    SandboxUsage,
)
from builderd.versions.model import Isolation

#: Called with one line of progress at a time; must not block.
Progress = Callable[[str], None]


class Sandboxes(Protocol):
    @property
    def gateway(self) -> str:
        """Address at which a sandbox reaches the service itself (the host of ``BUILDERD_URL``)."""

    @property
    def further_address(self) -> str:
        """Address of this machine at which sandboxes on other members of a cluster reach the service; "" without."""

    def supports(self, isolation: Isolation) -> str | None:
        """Return None when sandboxes of this isolation can run here, else why not and what to do."""

    async def start(self, spec: SandboxSpec) -> SandboxReport:
        """Start the sandbox, or find it running already. A half-made one of the same id is removed first."""

    async def report(self, sandbox: SandboxId) -> SandboxReport:
        """Return the present state of this sandbox; ``absent`` when there is none."""

    async def list_sandboxes(self) -> Sequence[SandboxReport]:
        """Return all sandboxes of this service, in any state."""

    async def listening(self, sandbox: SandboxId, port: int) -> Listening:
        """Return the TCP sockets that listen inside, or this port alone where it answers at the sandbox's address.

        Empty when it does not run. An engine may lead connections to that address on to loopback, where a port is open
        there alone. The other ports are those of the last second.
        """

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

        It ends where the engine does not answer: the next iteration begins with those that ended meanwhile.

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

    async def usages(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, SandboxUsage | Exception]:
        """Return the usage of those that run, or the error of reading it. Many cost less than each by ``usage``.

        Readings may be some seconds old, their bytes of disk some minutes, and CPU time may be counted in another way
        than by ``usage``.
        """


@dataclass(frozen=True, slots=True)
class DiskReport:
    """State of a disk. ``bundle_hash``: bundle last written completely, None before the first.

    ``build_key``: the layer whose files were written with it, empty without one. ``is_leaving``: its member of the
    cluster is to be emptied, and ``move_disk`` comes before the next start.
    """

    id: DiskId
    bundle_hash: str | None
    size_bytes: int
    build_key: str = ""
    is_leaving: bool = False


class Disks(Protocol):
    def reserve_disk(self, disk: DiskId, size_bytes: int) -> None:
        """Reserve the space of a disk that is to be created within the hour, without waiting. Raises ``NoCapacity``."""

    async def create_disk(self, disk: DiskId, size_bytes: int) -> None:
        """Create an empty disk with a hard limit; an existing one gets the limit. Idempotent. Raises ``NoCapacity``."""

    async def disk(self, disk: DiskId) -> DiskReport | None:
        """Return the state of the disk, or None when there is none."""

    async def put_bundle(
        self, disk: DiskId, bundle: Bundle, replaced: Bundle | None = None, build_key: str = ""
    ) -> None:
        """Write the files into the disk's ``/app`` and record the bundle's hash last. Idempotent.

        Where another bundle is ``replaced``, only what differs between the two is written or removed
        (``domain.bundles.changes``): the app's changes to other files stay, and so do files that it made.
        The files of the layer ``build_key``, which a build of this bundle made, are written over them; those of the
        build that was there before are removed. Raises ``NotFound`` without that layer.

        Never follows a link out of the disk. Must not be called while a sandbox runs on it.
        """

    async def mark_bundle(self, disk: DiskId, bundle_hash: str) -> None:
        """Record that the bundle is on the disk already, with the app's later changes, as a backup has them."""

    async def clone_disk(self, source: DiskId, target: DiskId, size_bytes: int, *, for_backup: bool = False) -> None:
        """Make an independent copy with a limit of its own, instantly. Idempotent.

        The copy is of one moment, as after a power cut; an engine may freeze a sandbox on the source for it, which the
        next service thaws when this one dies. ``for_backup``: the user's home lies among the files, where tools see it.
        """

    async def delete_disk(self, disk: DiskId) -> None:
        """Delete the disk. Idempotent."""


class Layers(Protocol):
    @property
    def base_id(self) -> str:
        """Name of the base root file system; part of every layer's key."""

    async def has_layer(self, key: str) -> bool:
        """Return True when a complete layer of this key exists."""

    async def build_layer(self, plan: LayerPlan, progress: Progress) -> BuildOutcome:
        """Run the plan's steps in build sandboxes; all or nothing. Two calls for one key make one layer.

        A plan with an ``app`` runs them on the version's files; the layer is what they made of these.
        Raises ``InstallFailed`` when the layer needs more than the plan's ``limit_bytes``.
        """

    async def stored_layers(self, keys: Collection[str] | None = None) -> StoredLayers:
        """Return all complete layers with their sizes and the tenants that built them, or those of these keys."""

    async def collect_layers(self, keys: Collection[str], unused_seconds: float) -> Sequence[str]:
        """Remove these layers as ``collect`` does: only those that no sandbox has mounted and no call just used."""


class Logs(Protocol):
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

    async def search_log(self, sandbox: SandboxId, match: LogMatch, before: str = "", *, count: int) -> LogPiece:
        """Return the matching lines of the piece of about ``count`` complete lines before the cursor ("" is the end).

        Each line is in one piece only. No piece is longer than some MB.
        """

    async def delete_logs(self, builder: BuilderId) -> None:
        """Remove the logs of all sandboxes of this builder. Idempotent."""


#: Names below ``/`` at which a tool may see folders of the service's machine.
TOOL_FOLDERS = ("repository", "cache", "work")


@dataclass(frozen=True, slots=True)
class Tool:
    """Trusted program, such as restic, that works on a disk where the disk is; not an app.

    It runs as the user who owns the disk's files, in a sandbox of its own, and sees the content of ``/app`` of the
    disk at ``/disk`` (read-only unless ``writable``), ``folders`` at their names below ``/`` (of ``TOOL_FOLDERS``), the
    base, and nothing else; its working directory is its own ``/tmp``. ``folders`` are folders of the machine of the
    service, made if missing, and written to by tools alone; an engine whose disks lie elsewhere raises
    ``EngineUnavailable``. ``reads_all`` lets it read files whose own mode would not. With ``network`` it reaches what
    this machine reaches, otherwise nothing. ``env`` may hold secrets and is never logged; ``argv`` may not.
    ``hostname`` is the host name that it sees.
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


@dataclass(frozen=True, slots=True)
class ToolExit:
    """Exit of a tool. ``exit_code`` is not 0 when it ran out of memory or time.

    ``store_full``: it failed on a disk while the store of all disks, not this one's limit, had no room.
    """

    exit_code: int
    out_of_memory: bool = False
    timed_out: bool = False
    store_full: bool = False


class Tools(Protocol):
    async def run_tool(self, tool: Tool, output: Progress) -> ToolExit:
        """Run it to its end, passing on each line that it prints. Nothing of it is left afterwards.

        A tool left running by a service that died is ended by the next one before it is ready. Raises ``NotFound``
        without the disk, ``InvalidState`` for a writable disk that a sandbox runs on, ``EngineUnavailable`` when the
        program is not there.
        """


class Members(Protocol):
    async def members(self) -> Sequence[MemberReport]:
        """Return the members as last seen; none where the engine works on this machine alone."""

    async def disk_members(self) -> Mapping[DiskId, str]:
        """Return the member of each disk, also of those on members that are away; none without a cluster."""

    async def move_disk(self, disk: DiskId) -> str:
        """Move a disk whose member is to be emptied to one that takes new disks, and return the name of its member.

        Another disk stays, and so does one that cannot be moved, which is not leaving then for some minutes. Meanwhile
        calls change no files of it. Raises ``NotFound``, ``InvalidState`` while a sandbox runs on it.
        """

    def write_off(self, disk: DiskId) -> None:
        """Report a disk on a member that is away as gone, and its sandbox as ended with its machine.

        This holds until the member returns, or the service ends. ``delete_disk`` is carried out when it returns, also
        after a restart of the service. Nothing happens to a disk on a member that answers.
        """


@dataclass(frozen=True, slots=True)
class Readiness:
    """Readiness of the engine. ``ready``: sandboxes can start; ``message``: what is being made or what is wrong.

    ``full``: it is not ready only for want of space. ``engine_unreachable``: only because what starts sandboxes does
    not answer, while those that run go on, and write.
    """

    ready: bool
    message: str
    full: bool = False
    engine_unreachable: bool = False


@dataclass(frozen=True, slots=True)
class Collected:
    """Result of a collection: keys of removed layers, names of removed bases, number of removed scratch folders."""

    layers: Sequence[str]
    bases: Sequence[str]
    scratch: int


class Engine(Members, Protocol):
    """The parts of an engine, each usable once it is open, and what concerns all of them."""

    @property
    def sandboxes(self) -> Sandboxes: ...

    @property
    def disks(self) -> Disks: ...

    @property
    def files(self) -> DiskFiles: ...

    @property
    def layers(self) -> Layers: ...

    @property
    def logs(self) -> Logs: ...

    @property
    def tools(self) -> Tools: ...

    async def prepare(self, progress: Progress) -> None:
        """Create what the engine needs (base, store, network). Idempotent; may take a minute."""

    def readiness(self) -> Readiness:
        """Return the progress or result of ``prepare``."""

    def capacity(self) -> Capacity:
        """Return the capacity for builders as known now, without waiting."""

    async def use(self) -> MachineUse:
        """Measure the machines, also before ``prepare`` and beside a service. Raises ``EngineUnavailable``."""

    async def collect(self, keep: Collection[str], unused_seconds: float) -> Collected:
        """Remove layers that are not in ``keep``, bases, and files of ended sandboxes.

        Only what no sandbox has mounted and no call (``has_layer``, ``start``) used for ``unused_seconds``. A
        concurrent call either gets a layer, which then stays, or finds that there is none.
        """

    def is_busy(self) -> bool:
        """Return True while more wants to run than the machine has CPUs: apps get more time to start."""

    def is_tight(self) -> bool:
        """Return True when space runs out and should be collected early."""

    async def close(self) -> None:
        """Release everything; sandboxes continue running, and the next service adopts them."""

    async def down(self) -> None:
        """Stop every sandbox and remove everything from the host: network, mounts, control groups."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Options of the store. ``size_bytes``: of the sparse file; ``floor_bytes`` always stay free on the host."""

    device: Path | None = None
    size_bytes: int | None = None
    floor_bytes: int = 2 << 30
    overcommit: float = 1.0


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of an engine. ``log_limit``: bytes of one log file of a sandbox, which keeps two at most.

    ``now`` returns the service's time in seconds since 1970; ``at`` converts a file's time to the service's time.
    ``reserved`` returns True for an IP address that no sandbox may get now. ``package_index``: the operator's, or None.
    """

    data_dir: Path
    inside_port: int
    allow: tuple[IPv4Network, ...] = ()
    deny: tuple[IPv4Network, ...] = ()
    log_limit: int = 10_000_000
    store: StoreOptions = field(default_factory=StoreOptions)
    now: Callable[[], float] = time.time
    at: Callable[[float], float] = float
    reserved: Callable[[str], bool] = field(default=lambda _: False)
    package_index: str | None = None


class EngineProvider(Protocol):
    def make(self, options: EngineOptions) -> Engine:
        """Return an engine, not prepared yet. Changes nothing."""

    def run_checks(self, data_dir: Path, floor_bytes: int) -> Sequence[PreflightCheck]:
        """Check what the engine needs on this machine; changes nothing. ``data_dir`` need not exist yet."""

    def read_inventory(self, data_dir: Path) -> EngineInventory | None:
        """Return the storage that the engine uses, also while it runs; None before its first run since the boot."""

    def build_base(self, progress: Progress, index: str | None) -> str:
        """Build the base root file system if it is missing. Return its name."""

    def find_base(self) -> Path | None:
        """Return the folder of the base root file system if it lies on this machine and is built."""

    def networks(self) -> Sequence[IPv4Network]:
        """Return the networks of the sandboxes of all services of this machine; webhooks are not sent there."""


@runtime_checkable
class ClusterProvider(Protocol):
    """A kind of engine whose disks are a cluster's: services on several machines can work on them, one at a time.

    The cluster also holds a claim, the id of the service that works or wants to: where the database cannot be reached,
    it tells whether another one takes over. All methods raise ``EngineUnavailable``.
    """

    async def disks_id(self) -> str:
        """Return what identifies the cluster and the place of the disks in it."""

    async def claimant(self) -> str:
        """Return the service that claimed the work last, "" before the first claim."""

    async def claim(self, service: str) -> None:
        """Claim the work for a service; returns once the cluster has stored it."""


@runtime_checkable
class ConfigurableProvider(Protocol):
    """A kind of engine with settings of its own: the section of its name, as field → value."""

    def configured(self, section: dict[str, Any]) -> EngineProvider:
        """Return the provider with these settings. Connects to nothing."""


async def read_each(
    usage: Callable[[SandboxId], Awaitable[SandboxUsage | None]], sandboxes: Collection[SandboxId]
) -> Mapping[SandboxId, SandboxUsage | Exception]:
    """Return the usage of those that run, or the error of reading it, for engines that read one after the other."""
    found: dict[SandboxId, SandboxUsage | Exception] = {}
    for sandbox in sandboxes:
        try:
            if (used := await usage(sandbox)) is not None:
                found[sandbox] = used
        except Exception as error:
            found[sandbox] = error
    return found


class Process(Protocol):
    """A running process and its streams. Each stream has at most one reader at a time.

    No output is lost and little is buffered: a reader that stops reading blocks the process.
    """

    async def read(self) -> bytes:
        """Return the next piece of its output, of both streams where they are joined or it has a terminal.

        Empty once it has ended and all its output was read. Later output of its background processes is dropped.
        """

    async def read_errors(self) -> bytes:
        """Return the next piece of its standard error, empty at its end; empty at once where it has no such stream."""

    async def write(self, data: bytes) -> None:
        """Write all of this to its input; return when it was taken. Ignored once no process can read it any more."""

    def close_input(self) -> None:
        """Close its input; on a terminal, send the end-of-file character, ^D. Idempotent."""

    def resize(self, window: Window) -> None:
        """Set the size of its terminal. Without a terminal nothing happens."""

    async def wait(self) -> int:
        """Wait until it ends and return its exit code; 128 plus the number of a signal that ended it."""

    async def kill(self) -> None:
        """Kill it and every process that it ever started, daemons among them. Idempotent."""

"""Sandboxes: isolated runs of a version, and their log lines. Values shared by the engine and the reconciler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from builderd.core.ids import BuilderId, DiskId, SandboxId
from builderd.core.resources import Resources
from builderd.versions.model import Isolation, text_error


class SandboxState(StrEnum):
    #: Unknown to the engine: never made, or removed.
    ABSENT = "absent"
    #: Left by an interrupted start; starting it again repairs it.
    PARTIAL = "partial"
    RUNNING = "running"
    #: Its processes are frozen and use no CPU until it is thawed.
    FROZEN = "frozen"
    #: Its main process has ended; what remains can be removed.
    EXITED = "exited"


class EndCause(StrEnum):
    #: The app's main process ended by itself.
    EXITED = "exited"
    #: The kernel killed it for going over its memory limit.
    OUT_OF_MEMORY = "out_of_memory"
    #: The kernel killed it because the machine had no memory left; it was within its own limit.
    HOST_OUT_OF_MEMORY = "host_out_of_memory"
    #: Stopped by the service on request.
    STOPPED = "stopped"
    #: The machine restarted under it.
    HOST_RESTARTED = "host_restarted"
    #: Its log monitor (conmon) was killed: the engine ended what was left, and the exit code is unknown.
    MONITOR_LOST = "monitor_lost"
    #: The engine has no record of it.
    UNKNOWN = "unknown"


#: Causes that the app is not responsible for and that come again while the machine's trouble lasts.
MACHINE_CAUSES = frozenset({EndCause.MONITOR_LOST, EndCause.HOST_OUT_OF_MEMORY})

#: Folder of the secret files in a sandbox.
SECRETS_FOLDER = "/run/credentials"


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """Specification of one sandbox for the engine.

    The engine runs ``/bin/sh -c entrypoint`` as an unprivileged user in ``/app``, which is the persistent
    content of ``disk``; the layer and the base lie below, read-only. ``env`` is complete but for
    ``BUILDERD_URL``, which only the engine knows. With ``egress`` False the sandbox reaches no network.
    ``root`` is the folder of ``/app`` in which the layer's Node packages are seen; the entrypoint goes there itself.
    ``secret_files`` maps paths below ``/run/credentials`` to text that the app alone may read; an engine keeps them,
    as it keeps ``env``, in memory only. Sandboxes of one ``tenant_id`` share what the network has for each tenant.
    """

    id: SandboxId
    builder_id: BuilderId
    disk: DiskId
    hostname: str
    entrypoint: str
    port: int
    env: Mapping[str, str]
    resources: Resources
    isolation: Isolation
    layer_key: str | None = None
    egress: bool = True
    secret_files: Mapping[str, str] = field(default_factory=dict)
    tenant_id: str = ""
    root: str = ""
    #: ``worker.1`` of a further process, which shares the disk with the app's own sandbox; empty for that one.
    process: str = ""


@dataclass(frozen=True, slots=True)
class SandboxEnd:
    """End of a sandbox. ``at`` is when its process ended (not when that was noticed), None if unknown."""

    cause: EndCause
    exit_code: int | None
    at: datetime | None


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """Engine's report on one sandbox. ``ip`` is its address on the host.

    ``frozen_at`` and ``thawed_at`` are when it was last frozen and thawed, also by a service that was killed before it
    could write that down; None when it never was.

    ``out_of_memory``: the kernel killed one of its processes at its memory limit, which the app may have outlived.
    ``member`` is the member of the cluster that it is on, empty on a single machine.
    """

    id: SandboxId
    builder_id: BuilderId | None
    state: SandboxState
    ip: str | None = None
    started_at: datetime | None = None
    end: SandboxEnd | None = None
    frozen_at: datetime | None = None
    thawed_at: datetime | None = None
    out_of_memory: bool = False
    member: str = ""

    @property
    def alive(self) -> bool:
        """True if it was started and has not ended."""
        return self.state in (SandboxState.RUNNING, SandboxState.FROZEN)

    @property
    def sleeps(self) -> bool:
        """True if it was frozen until somebody uses it, not for a copy of its disk, which writes down no time."""
        if self.state is not SandboxState.FROZEN or self.frozen_at is None:
            return False
        return self.thawed_at is None or self.thawed_at <= self.frozen_at


#: Address of a socket that listens on [::] for IPv6 alone; one for both is at "::".
IPV6_ONLY = "::%ipv6only"


@dataclass(frozen=True, slots=True)
class Listening:
    """The TCP sockets in LISTEN state inside a sandbox, as (IP, port) pairs."""

    sockets: frozenset[tuple[str, int]]

    def reachable(self, port: int) -> bool:
        """Return True if the port is open on an address that the preview can dial, which it does by IPv4."""
        return any(p == port and not is_loopback(ip) and not is_ipv6_only(ip) for ip, p in self.sockets)


@dataclass(frozen=True, slots=True)
class SandboxUsage:
    """Usage of a sandbox: CPU seconds and network bytes since its start; present memory, disk (bytes) and processes."""

    cpu_seconds: float
    memory_bytes: int
    disk_bytes: int
    network_in_bytes: int
    network_out_bytes: int
    processes: int


@dataclass(frozen=True, slots=True)
class ExecResult:
    """Result of a command; ``exit_code`` 124: killed by the timeout. ``output`` has both streams interleaved.

    ``hint`` names what its output shows to be missing, and where to add it; empty if the output does not tell.
    """

    exit_code: int
    output: str
    truncated: bool
    hint: str = ""


#: One argument of a process has at most 128 KiB on Linux (MAX_ARG_STRLEN).
MAX_COMMAND_BYTES = 100_000


def command_error(command: str) -> str | None:
    """Return the reason to reject a command, or None."""
    if not command.strip():
        return "must not be blank: give a command for /bin/sh"
    return text_error(command, MAX_COMMAND_BYTES)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Record of a sandbox. ``generation`` is the builder's that it belongs to, ``attempt`` counts from 1 within it.

    ``disk`` is the one it writes. ``started_at`` is None until the engine has started it, ``listening_at`` until the
    app was reachable, ``end`` until it ended. A ``trial`` tests whether a version starts, on a copy of the disk,
    while another sandbox serves; it gets no requests and is never paid. A ``release`` runs the release command of its
    version on that version's disk, before the sandbox of the app.
    """

    id: SandboxId
    builder_id: BuilderId
    version: int
    generation: int
    attempt: int
    created_at: datetime
    disk: DiskId
    trial: bool = False
    release: bool = False
    #: Name of the further process that it runs, and which of its sandboxes this is (from 1); empty for the app's own.
    process: str = ""
    number: int = 1
    #: A restart of its process was asked for: it stops if it runs, and its end counts for nothing.
    replaced: bool = False
    ip: str | None = None
    started_at: datetime | None = None
    listening_at: datetime | None = None
    end: SandboxEnd | None = None


def process_label(sandbox: Sandbox) -> str:
    """Return ``worker.1`` for a sandbox of a further process, and nothing for the app's own."""
    return f"{sandbox.process}.{sandbox.number}" if sandbox.process else ""


def is_ipv6_only(ip: str) -> bool:
    """Return True for the address of a socket that takes no connection by IPv4."""
    return ":" in ip and ip != "::" and not ip.startswith("::ffff:")


def is_loopback(ip: str) -> bool:
    """Return True for 127.0.0.0/8, ::1, and 127.0.0.0/8 mapped into IPv6."""
    return ip == "::1" or ip.startswith(("127.", "::ffff:127."))


class LogStream(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"
    #: Output of the installer that made the version's layer.
    BUILD = "build"
    #: Output of the version's release command.
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line without its line end; bytes that are not UTF-8 stand as U+FFFD."""

    time: datetime
    stream: LogStream
    text: str


@dataclass(frozen=True, slots=True)
class LogMatch:
    """Condition on a line: from ``since`` on, of one ``stream`` or of all, with ``search`` in any case of letters."""

    since: datetime | None = None
    stream: LogStream | None = None
    search: str = ""

    def passes(self, line: LogLine) -> bool:
        if self.search and self.search.casefold() not in line.text.casefold():
            return False
        return (self.since is None or line.time >= self.since) and self.stream in (None, line.stream)


class LogPiece(NamedTuple):
    """Lines of a piece of a log that match, oldest first, between two cursors; ``more``: earlier pieces exist."""

    lines: Sequence[LogLine]
    begin: str
    end: str
    more: bool


class LogPage(NamedTuple):
    """Lines of a log, oldest first. ``cursor`` is the position to read on from, ``more`` True if lines follow."""

    lines: Sequence[LogLine]
    cursor: str
    more: bool

"""Parameters of a sandbox, and the parts of the service that all work on sandboxes shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builderd.adapters.engines.oci.network.allocations import Slots
from builderd.adapters.engines.oci.network.network import Network
from builderd.adapters.engines.oci.runtime.cgroups import Cgroups
from builderd.adapters.engines.oci.runtime.command import Runtime
from builderd.adapters.engines.oci.runtime.heartbeat import Heartbeat
from builderd.adapters.engines.oci.runtime.launching import Launcher
from builderd.adapters.engines.oci.runtime.records import Records
from builderd.adapters.engines.oci.runtime.root import Root
from builderd.adapters.engines.oci.storage.quotas import NO_SPACE, DiskSpace
from builderd.ports.engine import PauseRequests, pause_nothing


@dataclass(frozen=True, slots=True)
class Run:
    """Parameters of a sandbox. ``owner`` and ``disk`` are a builder's and empty for a build; ``user`` is the id inside.

    ``tmpfs`` maps paths inside to sizes in bytes, ``secret_files`` paths below ``/run/credentials`` to their text.
    ``capabilities`` and ``host_network`` are for trusted tools. ``tenant`` is whose NAT ports it takes.
    ``space`` is that of its disk at its start.
    ``cpu_weight``: weight of each of its ``cpu``, where CPUs are short, beside the 1 of other sandboxes.
    """

    id: str
    owner: str
    disk: str
    runtime: Runtime
    root: Root
    hostname: str
    port: int
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    user: int
    cpu: float
    memory_bytes: int
    pids: int
    egress: bool
    log: Path
    log_limit: int
    tmpfs: Mapping[str, int] = field(default_factory=dict)
    secret_files: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    host_network: bool = False
    tenant: str = ""
    space: DiskSpace = NO_SPACE
    cpu_weight: float = 1.0

    @property
    def is_app(self) -> bool:
        """True if code of a tenant runs in it under its own rules."""
        return bool(self.owner)

    @property
    def has_own_proc(self) -> bool:
        """True if files of the host's ``/proc`` are replaced. gVisor has a ``/proc`` of its own.

        Builds see the host's: Node.js would limit its heap to half of a build's memory.
        """
        return self.is_app and not self.runtime.is_gvisor


@dataclass(frozen=True, slots=True)
class RunsConfig:
    """Paths and seccomp profiles of a service. ``run_dir`` is searchable by all; ``store`` is a mount point.

    ``seccomp`` goes into the bundles of apps, ``build_seccomp`` into those of builds and tools.
    """

    run_dir: Path
    store: Path
    seccomp: Mapping[str, Any]
    build_seccomp: Mapping[str, Any]

    def bundle(self, name: str) -> Path:
        return self.run_dir / "sandboxes" / name


@dataclass(frozen=True, slots=True)
class RunContext:
    """Parts of the service that runs need."""

    config: RunsConfig
    records: Records
    launcher: Launcher
    cgroups: Cgroups
    network: Network
    slots: Slots
    runtimes: Mapping[str, Runtime]
    heartbeat: Heartbeat
    pause_requests: PauseRequests = pause_nothing

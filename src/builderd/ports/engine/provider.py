"""A kind of engine: makes engines from options, and answers for its machine without opening one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from builderd.domain.inventory import EngineInventory, PreflightCheck
from builderd.ports.engine.engine import Engine
from builderd.ports.engine.progress import Progress

#: Returns a context in which requests to the app at an IP address wait.
PauseRequests = Callable[[str], AbstractAsyncContextManager[None]]


def pause_nothing(ip: str) -> AbstractAsyncContextManager[None]:
    return nullcontext()


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
    ``reserved`` returns True for an IP address that no sandbox may get now.
    ``pause_requests`` keeps visitors waiting while an app is frozen for a copy of its disk: it accepts no connections.
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
    pause_requests: PauseRequests = pause_nothing


class EngineProvider(Protocol):
    def make(self, options: EngineOptions) -> Engine:
        """Return an engine, not prepared yet. Changes nothing."""

    def run_checks(self, data_dir: Path, floor_bytes: int) -> Sequence[PreflightCheck]:
        """Check what the engine needs on this machine; changes nothing. ``data_dir`` need not exist yet."""

    def read_inventory(self, data_dir: Path) -> EngineInventory | None:
        """Return the storage that the engine uses, also while it runs; None before its first run since the boot."""

    def build_base(self, progress: Progress) -> str:
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

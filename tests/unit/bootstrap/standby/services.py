"""Services that share one database, with a fake of the proxy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from tests.unit.bootstrap.fake_cluster import FakeCluster, instance

from builderd.bootstrap.database import this_instance
from builderd.bootstrap.database_lease import OwnedStore, owned_store
from builderd.bootstrap.serving import Supervisor
from builderd.bootstrap.standby import Membership
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.settings import Settings

#: The real times, so much shorter.
HURRY = 25


class FakeProxy:
    """Fence and proxy of one machine, as the module ``previews.haproxy.process``."""

    def __init__(self) -> None:
        #: Data directory → the deadline of its previews.
        self.deadlines: dict[Path, float] = {}
        self.ended: list[Path] = []
        #: Data directories whose routes were removed.
        self.taken_down: list[Path] = []

    async def set_deadline(self, files: object, until: float) -> None:
        self.deadlines[_folder(files)] = until

    async def lift(self, files: object) -> None:
        self.deadlines.pop(_folder(files), None)

    async def end(self, files: object) -> None:
        self.ended.append(_folder(files))

    async def take_down(self, files: object) -> None:
        self.taken_down.append(_folder(files))
        await self.lift(files)

    def is_past(self, service: Settings) -> bool:
        return self.deadlines[service.data_dir] <= time.clock_gettime(time.CLOCK_BOOTTIME)


def _folder(files: object) -> Path:
    directory: Path = files.directory  # type: ignore[attr-defined]
    return directory.parent


async def share_keys(source: Settings, target: Settings) -> None:
    described = Membership(source, instance(source), FakeCluster())
    await described.describe(make_keys_first=True)
    for name in ("vault.key", "ssh_host_key"):
        (target.data_dir / name).write_bytes((source.data_dir / name).read_bytes())
        (target.data_dir / name).chmod(0o600)


def instance_id(settings: Settings) -> str:
    return this_instance(settings).member


class Service:
    """A service that runs until it is stopped, killed or fails."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        #: Whom it stood by for, as its API said.
        self.stood_by: list[str | None] = []
        self._entered = owned_store(settings, Supervisor(), take_over=False, stand_by=self.stood_by.append)
        self._owned: OwnedStore | None = None
        #: By the time since the boot.
        self.owned_at = 0.0
        self.task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        self._owned = await self._entered.__aenter__()
        self.owned_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        await self._owned.keep()

    @property
    def works(self) -> bool:
        return self._owned is not None

    @property
    def owned(self) -> OwnedStore:
        assert self._owned is not None
        return self._owned

    async def kill(self) -> None:
        """End it as by SIGKILL: nothing is released."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def stop(self) -> None:
        """End it as by SIGTERM."""
        await self.kill()
        if self._owned is not None:
            await self._entered.__aexit__(None, None, None)
            self._owned = None

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until it is true, but not for a service that has failed."""
        async with asyncio.timeout(30):
            while not true():
                if self.task.done():
                    self.task.result()
                await asyncio.sleep(0.005)


class Services:
    """Services on one database, and a look at it from outside."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._started: list[Service] = []

    def start(self, settings: Settings) -> Service:
        self._started.append(Service(settings))
        return self._started[-1]

    async def start_working(self, settings: Settings) -> Service:
        service = self.start(settings)
        await service.until(lambda: service.works)
        return service

    async def start_both(self, owner: Settings, standby: Settings) -> tuple[Service, Service]:
        """Return a service that works, and one that it knows to stand by."""
        working = await self.start_working(owner)
        waiting = self.start(standby)
        await self.until_known(standby.data_dir.name)
        return working, waiting

    async def known(self) -> list[str]:
        """Return the data directories of the standbys that the owner knows."""

        def look(uow: UnitOfWork) -> list[str]:
            lease = uow.database_lease.get()
            assert lease is not None
            return [Path(one.service.data_dir).name for one in uow.services.list() if one.known_in == lease.term]

        return sorted(await self.store.read(look))

    async def until_known(self, *names: str) -> None:
        async with asyncio.timeout(30):
            while await self.known() != list(names):
                for one in self._started:
                    if one.task.done() and not one.task.cancelled():
                        one.task.result()
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        for one in self._started:
            await one.stop()

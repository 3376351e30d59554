"""A whole service on fakes and a database in memory: what tests of the HTTP door talk to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy import func, select
from tests.fake_application import make_application
from tests.fakes.bundles import FakeBundles
from tests.fakes.engine import FakeEngine
from tests.fakes.installer import FakeInstaller
from tests.fakes.previews import FakePreviews
from tests.fakes.scanners import FakeScanner
from tests.fakes.testers import FakeTesters
from tests.patience import patience
from tests.stores import MEMORY, memory_store, open_store

from builderd.application import Application
from builderd.backups.job import BackupSchedule
from builderd.core.ids import secret_hash
from builderd.core.loops import no_fault
from builderd.database.columns import metadata
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.linux.clock import SystemClock
from builderd.qa.job import Reporting
from builderd.reconciler.reconciler import Reconciler
from builderd.server.app import create_app
from builderd.server.limits import ConnectionLimits, Limiter
from builderd.server.listener import Server, server_config, tune
from builderd.server.operations import Operations
from builderd.tokens import service as tokens
from builderd.tokens.limits import Limits
from builderd.tokens.model import Scope, Token

METRICS_TOKEN = "metrics-secret"

#: The least that creates a builder.
MINIMAL: dict[str, Any] = {"name": "my-api", "entrypoint": "python3 main.py", "files": {"main.py": "print('hello')"}}


@dataclass(slots=True)
class Service:
    """``write`` and ``read`` are secrets of one tenant's tokens, ``other`` is one of another tenant."""

    application: Application
    engine: FakeEngine
    previews: FakePreviews
    bundles: FakeBundles
    installer: FakeInstaller
    scanner: FakeScanner
    store: Store
    app: FastAPI
    write: str
    read: str
    other: str
    _clients: list[httpx.AsyncClient] = field(default_factory=list)

    def client(self, secret: str | None, url: str | None = None, **headers: str) -> httpx.AsyncClient:
        """Speaks to the app with this token: in memory, or to the ``url`` where it listens."""
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret}"
        transport = None if url else httpx.ASGITransport(self.app)
        base = url or "http://builderd"
        client = httpx.AsyncClient(
            base_url=base, transport=transport, headers=headers, timeout=patience(30), trust_env=False
        )
        self._clients.append(client)
        return client

    async def token(self, tenant: str, *scopes: Scope) -> str:
        """The secret of a new token."""
        return await _token(self.application, tenant, scopes)

    async def revoke(self, secret: str) -> None:
        """End this token."""
        now = self.application.clock.now()
        await self.application.store.write(lambda uow: uow.tokens.revoke([_of_secret(uow, secret).id], now))

    async def kept(self) -> Mapping[str, int]:
        """Return the number of all things that a refused request must leave as they were."""
        return {
            "world_bundles": len(self.bundles.stored),
            "world_sandboxes": len(self.engine.known),
            "world_disks": len(self.engine.known_disks),
            "world_routes": len(await self.previews.routes()),
            # In the store's own thread: in memory there is one connection for all.
            **await asyncio.get_running_loop().run_in_executor(self.store._readers, _rows, self.store),
        }

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()


@asynccontextmanager
async def running_service(database: str = MEMORY, **limits: Any) -> AsyncIterator[Service]:
    """The service until the block ends, with its reconciler at work, on an empty database."""
    async with memory_store() if database == MEMORY else open_store(database) as store:
        service = await _make(store, Limits(**{"qa_report": False, **limits}))
        await service.engine.prepare(lambda _: None)
        await service.previews.start()
        operations = service.app.state.operations
        reporting = Reporting(service.application, no_fault)
        reconciler = Reconciler(service.application, on_settled=reporting.request_report)
        jobs = (reconciler.run(), reporting.run(), BackupSchedule(service.application).run())
        working = [asyncio.create_task(work) for work in jobs]
        try:
            yield service
        finally:
            await service.close()
            await operations.close()
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)


@asynccontextmanager
async def listening(
    app: FastAPI, limits: ConnectionLimits | None = None, address: str = "127.0.0.1"
) -> AsyncIterator[str]:
    """The app behind the door's own listener, on a free port of the loopback address."""
    with socket.create_server((address, 0), backlog=2048) as listener:
        listener.setblocking(False)
        host, port = listener.getsockname()
        tune(listener)
        server = Server(server_config(app, Limiter(limits)))
        serving = asyncio.create_task(server._serve([listener]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield f"http://{host}:{port}"
        finally:
            server.should_exit = True
            await serving


class HurriedClock(SystemClock):
    """Clock on which waits take no time."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.005))


async def _make(store: Store, limits: Limits) -> Service:
    engine, previews, bundles, installer = FakeEngine(), FakePreviews(), FakeBundles(), FakeInstaller()
    testers, scanner = FakeTesters(), FakeScanner()
    application = make_application(
        store, engine, previews, bundles, installer, testers, scanner, HurriedClock(), limits
    )
    return Service(
        application=application,
        engine=engine,
        previews=previews,
        bundles=bundles,
        installer=installer,
        scanner=scanner,
        store=store,
        app=create_app(Operations(application), metrics_token=METRICS_TOKEN),
        write=await _token(application, "acme", [Scope.WRITE]),
        read=await _token(application, "acme", [Scope.READ]),
        other=await _token(application, "other", [Scope.WRITE]),
    )


def _rows(store: Store) -> dict[str, int]:
    with store._database.reading.begin() as connection:
        # But for the keys of backups: the service makes one for each tenant when it gets to it.
        tables = [table for table in metadata.sorted_tables if table.name != "backup_keys"]
        return {t.name: connection.execute(select(func.count()).select_from(t)).scalar_one() for t in tables}


def _of_secret(uow: UnitOfWork, secret: str) -> Token:
    token = uow.tokens.by_secret_hash(secret_hash(secret))
    assert token
    return token


async def _token(application: Application, tenant: str, scopes: Collection[Scope]) -> str:
    now = application.clock.now()
    _, secret = await application.store.write(lambda uow: tokens.create(uow, tenant, "test", now, scopes=scopes))
    return secret

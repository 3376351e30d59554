"""Two services on one database, whose times are short."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.stores import write_database
from tests.unit.bootstrap.fake_cluster import FakeCluster
from tests.unit.bootstrap.standby.services import HURRY, FakeProxy, Services, share_keys

from builderd.bootstrap import database_lease as leasing
from builderd.bootstrap import standby
from builderd.bootstrap.data_directory import LOCK_FILE
from builderd.bootstrap.standby import Membership
from builderd.core import members as database_lease
from builderd.database.unit_of_work import Store
from builderd.settings import Settings


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def proxy() -> FakeProxy:
    return FakeProxy()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch, cluster: FakeCluster, proxy: FakeProxy) -> None:
    """Put the fakes in place, and divide all times by ``HURRY``."""
    monkeypatch.setattr(leasing, "make_membership", lambda settings, instance: Membership(settings, instance, cluster))
    monkeypatch.setattr(standby, "process", proxy)
    monkeypatch.setattr(leasing, "process", proxy)
    for module in (database_lease, standby, leasing):
        for name, seconds in vars(module).copy().items():
            if name.isupper() and isinstance(seconds, float) and name != "FORGET_AFTER":
                monkeypatch.setattr(module, name, seconds / HURRY)


@pytest.fixture
async def database(tmp_path: Path) -> str:
    await write_database(tmp_path / "shared.db")
    return f"sqlite:///{tmp_path}/shared.db"


@pytest.fixture
def make(tmp_path: Path, database: str, unused_tcp_port_factory: Callable[[], int]) -> Callable[[str], Settings]:
    def make(name: str) -> Settings:
        folder = tmp_path / name
        folder.mkdir()
        (folder / LOCK_FILE).touch()
        return Settings(data_dir=folder, database_url=database, port=unused_tcp_port_factory())

    return make


@pytest.fixture
def one(make: Callable[[str], Settings]) -> Settings:
    return make("one")


@pytest.fixture
async def two(make: Callable[[str], Settings], one: Settings) -> Settings:
    """Another service on the same database, with the same keys."""
    settings = make("two")
    await share_keys(one, settings)
    return settings


@pytest.fixture
async def services(database: str) -> AsyncIterator[Services]:
    store = Store(database)
    running = Services(store)
    try:
        yield running
    finally:
        await running.end()
        await store.close()

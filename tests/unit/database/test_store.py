"""The store itself: which URLs it takes, when it is ready, and how it ends."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError
from tests.contract.store.samples import TENANT, add, add_builder
from tests.stores import memory_store

from builderd.core.errors import StoreUnavailable
from builderd.database import unit_of_work as store_module
from builderd.database.unit_of_work import Store, UnitOfWork


@pytest.mark.parametrize(
    "url", ["", "builderd.db", "/var/lib/builderd.db", "mysql://root:secret@db/builderd", "http://x", "sqlite:/x"]
)
def test_another_url_is_refused_with_what_would_do_and_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:////path/to/file or postgresql://") as caught:
        Store(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_spelling_of_postgresql_is_taken(scheme: str) -> None:
    Store(f"{scheme}://me@db.example/builderd")


async def test_a_store_that_cannot_reach_its_database_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for url in (f"sqlite:///{tmp_path}/file/builderd.db", f"postgresql://me@/builderd?host={tmp_path}"):
        store = Store(url)
        assert not await store.ready()
        await store.close()


async def test_a_store_that_does_not_answer_in_time_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    async with memory_store() as store:
        working = asyncio.create_task(store.write(lambda _: let_go.wait(30)))
        await asyncio.sleep(0)  # it is queued before the question
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "READY_TIMEOUT", 0.05)
            assert not await store.ready()
        let_go.set()
        await working
        assert await store.ready()


async def test_queued_work_that_timed_out_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "DEADLINE", 0.05)
    let_go, began = threading.Event(), threading.Event()

    def busy(_: UnitOfWork) -> str:
        began.set()
        let_go.wait(30)
        return "done"

    async with memory_store() as store:
        working = asyncio.create_task(store.write(busy))
        await asyncio.to_thread(began.wait)
        for call in (store.write(lambda uow: uow.tenants.add(TENANT)), store.read(lambda uow: uow.builders.ids())):
            with pytest.raises(StoreUnavailable) as caught:
                await call
            assert caught.value.retry_after
        let_go.set()
        assert await working == "done", "what has begun is waited for"
        assert await store.read(lambda uow: uow.tenants.get(TENANT.id)) is None


async def test_the_text_of_an_error_shows_nothing_that_is_stored() -> None:
    async with memory_store() as store:
        await add(store, TENANT)
        builder = await add_builder(store)
        with pytest.raises(IntegrityError) as caught:
            await add_builder(store, host=builder.host, service_token="bds_confidential")
    assert "bds_confidential" not in str(caught.value)


async def test_closing_waits_for_the_work_that_was_begun(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/builderd.db"
    store = Store(url)
    await store.migrate()
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def work(uow: UnitOfWork) -> None:
        loop.call_soon_threadsafe(began.set)
        uow.tenants.add(TENANT)

    writing = asyncio.create_task(store.write(work))
    await began.wait()
    await store.close()
    await writing
    again = Store(url)
    assert await again.read(lambda uow: uow.tenants.get(TENANT.id)) == TENANT
    await again.close()

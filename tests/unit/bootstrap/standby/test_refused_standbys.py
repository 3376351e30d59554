"""A service with other keys, of another cluster or of an older version does not stand by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.bootstrap.fake_cluster import FakeCluster
from tests.unit.bootstrap.standby.services import (
    HURRY,
    Services,
    share_keys,
)
from tests.unit.bootstrap.test_database_lease import _execute

from builderd.bootstrap import standby
from builderd.bootstrap.data_directory import LOCK_FILE
from builderd.bootstrap.database import this_instance
from builderd.bootstrap.standby import Membership, works_elsewhere
from builderd.core import members as database_lease
from builderd.core.errors import EngineUnavailable
from builderd.core.members import DatabaseOwned
from builderd.database.migrations import revisions
from builderd.settings import Settings


async def test_service_with_other_keys_is_refused_with_the_commands_that_copy_them(
    services: Services, one: Settings, make: Callable[[str], Settings]
) -> None:
    await services.start_working(one)
    await asyncio.sleep(5 / HURRY)
    stranger = services.start(make("stranger"))
    with pytest.raises(DatabaseOwned) as refused:
        await stranger.task
    for name in ("vault.key", "ssh_host_key"):
        assert f":{one.data_dir}/{name} {stranger.settings.data_dir}/{name}" in refused.value.message
    assert not (stranger.settings.data_dir / "vault.key").exists()


async def test_service_of_another_cluster_is_refused(
    services: Services, one: Settings, two: Settings, cluster: FakeCluster
) -> None:
    first = await services.start_working(one)
    await first.until(lambda: bool(cluster.id))
    async with asyncio.timeout(30):
        while not await services.store.read(lambda uow: uow.services.list()):
            await asyncio.sleep(0.01)
    cluster.id = "elsewhere"
    with pytest.raises(DatabaseOwned, match="disks are in another place"):
        await services.start(two).task


@pytest.mark.slow
async def test_older_version_does_not_take_a_newer_schema(
    services: Services, one: Settings, two: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await services.start_both(one, two)
    _execute(one, "UPDATE alembic_version SET version_num = '9999'")
    await first.stop()
    await asyncio.sleep(40 / HURRY)
    assert not second.works
    assert "upgrade this service" in caplog.text
    _execute(one, f"UPDATE alembic_version SET version_num = '{revisions()[-1]}'")
    await second.until(lambda: second.works)


async def test_standby_whose_key_differs_after_a_rotation_waits_for_the_copy(
    services: Services, one: Settings, two: Settings, make: Callable[[str], Settings], caplog: pytest.LogCaptureFixture
) -> None:
    new = make("new")
    await share_keys(new, new)
    first, second = await services.start_both(one, two)
    (one.data_dir / "vault.key").write_bytes((new.data_dir / "vault.key").read_bytes())
    await second.until(lambda: "its keys are not those of" in caplog.text)
    assert f"/vault.key {two.data_dir}/vault.key" in caplog.text
    await services.until_known()
    (two.data_dir / "vault.key").write_bytes((new.data_dir / "vault.key").read_bytes())
    await services.until_known("two")
    assert not first.task.done()
    assert not second.task.done()


@pytest.mark.parametrize("name", ["vault.key", "ssh_host_key"])
async def test_owner_whose_key_cannot_be_read_goes_on_and_keeps_its_lease(
    name: str, services: Services, one: Settings, two: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await services.start_both(one, two)
    (one.data_dir / name).write_bytes(b"")
    await first.until(lambda: "service not announced to the cluster" in caplog.text)
    assert name in caplog.text
    # Without renewals the standby would have claimed the work and taken it by then.
    await asyncio.sleep((database_lease.CLAIM_AFTER + database_lease.TAKE_AFTER_CLAIM) * 1.5)
    assert not second.works
    assert not first.task.done()
    assert "database lease not renewed" not in caplog.text
    assert await services.known() == ["two"]


async def test_standby_whose_key_is_being_copied_waits_for_it(
    services: Services, one: Settings, two: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    _, second = await services.start_both(one, two)
    whole = (two.data_dir / "vault.key").read_bytes()
    (two.data_dir / "vault.key").write_bytes(b"")
    await second.until(lambda: "A key of this service cannot be read" in caplog.text)
    await services.until_known()
    (two.data_dir / "vault.key").write_bytes(whole)
    await services.until_known("two")
    assert not second.task.done()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    found = FakeCluster()
    monkeypatch.setattr(standby, "make_membership", lambda settings, one: Membership(settings, one, found))
    return found


@pytest.fixture
def service(tmp_path: Path) -> Settings:
    """A service whose database does not answer."""
    (tmp_path / LOCK_FILE).touch()
    return Settings(data_dir=tmp_path, database_url="postgresql://builderd@127.0.0.1:1/builderd")


async def test_claim_on_the_cluster_tells_who_works_while_the_database_is_away(
    cluster: FakeCluster, service: Settings
) -> None:
    assert not await works_elsewhere(service)
    cluster.claimed = "another"
    assert await works_elsewhere(service)
    cluster.claimed = this_instance(service).member
    assert not await works_elsewhere(service)
    cluster.away = True
    with pytest.raises(EngineUnavailable):
        await works_elsewhere(service)


@pytest.mark.parametrize("name", ["vault.key", "ssh_host_key"])
@pytest.mark.parametrize("content", [b"", b"no key", b"\xff\xfe"])
async def test_key_that_cannot_be_read_leaves_the_service_unannounced_and_says_which(
    service: Settings, name: str, content: bytes
) -> None:
    membership = Membership(service, this_instance(service), FakeCluster())
    await membership.describe(make_keys_first=True)
    whole = (service.data_dir / name).read_bytes()
    (service.data_dir / name).write_bytes(content)
    for make_keys_first in (False, True):
        with pytest.raises(EngineUnavailable, match=name):
            await membership.describe(make_keys_first=make_keys_first)
    (service.data_dir / name).write_bytes(whole)
    assert (await membership.describe()).vault_key


async def test_key_that_is_no_file_leaves_the_service_unannounced(service: Settings) -> None:
    membership = Membership(service, this_instance(service), FakeCluster())
    service.vault_key_file.mkdir(0o700)
    with pytest.raises(EngineUnavailable, match="Is a directory"):
        await membership.describe(make_keys_first=True)

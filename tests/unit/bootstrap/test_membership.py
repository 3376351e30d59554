"""A service of a cluster that is taken down stops the apps only if it is the one that works."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.bootstrap.fake_cluster import FakeCluster

from builderd.bootstrap import standby
from builderd.bootstrap.data_directory import LOCK_FILE
from builderd.bootstrap.database import this_instance
from builderd.bootstrap.standby import Membership, works_elsewhere
from builderd.domain.errors import EngineUnavailable
from builderd.settings import Settings


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

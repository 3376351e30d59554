"""A cluster keeps the claim of its service, and says which it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.incus import IncusCluster

from builderd.core.errors import EngineUnavailable
from builderd.engine.incus.client import IncusOptions
from builderd.engine.incus.provider import IncusProvider
from builderd.engine.port import ClusterProvider

pytestmark = pytest.mark.root


async def test_claim_is_kept_before_and_after_the_project_is_made(cluster: IncusCluster) -> None:
    provider = IncusProvider(cluster.options("claims"))
    assert isinstance(provider, ClusterProvider)
    assert await provider.claimant() == ""
    for service in ("one", "two", "two"):
        await provider.claim(service)
        assert await provider.claimant() == service
    assert await IncusProvider(cluster.options("others")).claimant() == ""


async def test_members_of_a_cluster_name_the_same_disks_and_other_places_others(cluster: IncusCluster) -> None:
    disks = await IncusProvider(cluster.options("one")).disks_id()
    assert disks == await IncusProvider(cluster.options("one")).disks_id()
    assert disks != await IncusProvider(cluster.options("two")).disks_id()
    assert disks.endswith("/one/default")


async def test_cluster_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    provider = IncusProvider(IncusOptions(socket=tmp_path / "none"))
    for asked in (provider.disks_id(), provider.claimant(), provider.claim("one")):
        with pytest.raises(EngineUnavailable):
            await asked

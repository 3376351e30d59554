"""Clusters: those of killed processes are removed; one keeps the claim of its service, and says which it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.incus import ROOT, IncusCluster, start_time, sweep_clusters

from builderd.adapters.engines.incus.client import IncusOptions
from builderd.adapters.engines.incus.provider import IncusProvider
from builderd.domain.errors import EngineUnavailable
from builderd.ports.engine import ClusterProvider

pytestmark = pytest.mark.root

MAKES_ONE = """
import sys, time
from tests.incus import running_cluster
with running_cluster(1) as cluster:
    print(cluster.name, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_cluster_of_a_killed_process_is_swept() -> None:
    tests = Path(__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": f"{tests}:{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen([sys.executable, "-c", MAKES_ONE], stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout
        name = process.stdout.readline().strip()
        assert sweep_clusters() == []
        process.send_signal(signal.SIGKILL)
    assert name in sweep_clusters()
    assert list(ROOT.glob(f"{name}*")) == []
    assert name not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout


def test_process_of_another_start_time_is_not_the_owner(tmp_path: Path) -> None:
    own = os.getpid()
    (tmp_path / "bd1.owner").write_text(f"{own} {start_time(own)}")
    assert sweep_clusters(tmp_path) == []
    (tmp_path / "bd1.owner").write_text(f"{own} 1")
    assert sweep_clusters(tmp_path) == ["bd1"]
    assert list(tmp_path.iterdir()) == []


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

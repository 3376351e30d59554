"""``builderd cluster`` on machines with Incus that nobody has set up: formed, joined, shown, made smaller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.incus import IncusCluster, blank_members

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[IncusCluster]:
    with blank_members(3) as cluster:
        yield cluster


def builderd(
    cluster: IncusCluster, member: int, folder: Path, *words: str, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run ``builderd cluster`` on a member."""
    env = {**os.environ, "BUILDERD_ENGINE": "incus", "BUILDERD_INCUS__SOCKET": str(cluster.socket(member))}
    command = [sys.executable, "-m", "builderd", "cluster", *words, "--data-dir", str(folder)]
    with cluster.network_of(member):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done


def test_three_machines_become_a_cluster_and_two_again(cluster: IncusCluster, tmp_path: Path) -> None:
    refused = builderd(cluster, 2, tmp_path, "join", "no-token", code=1)
    assert "builderd cluster add NAME prints" in refused.stderr
    refused = builderd(cluster, 2, tmp_path, "status", code=1)
    assert "not" in refused.stderr
    assert "cluster" in refused.stderr
    assert "Traceback" not in refused.stderr

    first = json.loads(builderd(cluster, 1, tmp_path, "init", "--name", "one", "--size", "2GiB", "--json").stdout)
    assert first == {"member": "one", "address": "10.98.0.11"}
    for number, name in ((2, "two"), (3, "three")):
        token = builderd(cluster, 1, tmp_path, "add", name).stdout.strip()
        joined = builderd(cluster, number, tmp_path, "join", token, "--size", "2GiB", "--json")
        assert json.loads(joined.stdout) == {"member": name}
        again = builderd(cluster, number, tmp_path, "join", token, "--size", "2GiB", code=1)
        assert "Traceback" not in again.stderr
    members = {one["name"]: one for one in json.loads(builderd(cluster, 3, tmp_path, "status", "--json").stdout)}
    assert {name: (one["address"], one["status"], one["disks"]) for name, one in members.items()} == {
        "one": ("10.98.0.11", "Online", 0),
        "two": ("10.98.0.12", "Online", 0),
        "three": ("10.98.0.13", "Online", 0),
    }
    assert all(1.5 < one["pool_total"] < 2.5 for one in members.values())
    shown = builderd(cluster, 1, tmp_path, "status").stdout.splitlines()
    assert shown[0].split()[:3] == ["MEMBER", "ADDRESS", "STATUS"]
    assert len(shown) == 4

    assert "no member four" in builderd(cluster, 1, tmp_path, "evacuate", "four", code=1).stderr
    builderd(cluster, 1, tmp_path, "evacuate", "three")
    members = {one["name"]: one for one in json.loads(builderd(cluster, 1, tmp_path, "status", "--json").stdout)}
    assert (members["three"]["status"], members["three"]["evacuating"]) == ("Evacuated", True)
    builderd(cluster, 1, tmp_path, "restore", "three")
    members = {one["name"]: one for one in json.loads(builderd(cluster, 1, tmp_path, "status", "--json").stdout)}
    assert (members["three"]["status"], members["three"]["evacuating"]) == ("Online", False)
    builderd(cluster, 1, tmp_path, "remove", "three")
    assert len(json.loads(builderd(cluster, 1, tmp_path, "status", "--json").stdout)) == 2

"""Engines of the acceptance tests marked ``engines``: that of this machine, and a cluster of Incus.

The cluster has three members. Every run has the tests of ``EVERY_RUN`` there, script/soak all but those of
``NOT_ON_INCUS``.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from tests.acceptance.incus_service import INCUS, ask_incus, disks_on_incus, running_on
from tests.acceptance.live_service import LiveService, live_service
from tests.backends import RestServer, rest_server
from tests.incus import IncusCluster, address_of

#: One of each part of the API: deployment, jobs, redeploys under load, sleep and wake, backups, files, SSH, gates.
EVERY_RUN = frozenset(
    {
        "test_documented_create_call_works",
        "test_finished_job_keeps_its_logs_and_files",
        "test_job_reads_its_input",
        "test_no_request_fails_during_redeploys_settings_changes_and_rollbacks",
        "test_idle_builder_freezes_and_thaws_for_a_request",
        "test_auto_stopped_builder_starts_for_a_request",
        "test_backup_of_a_running_app_is_restored",
        "test_files_are_shared_with_the_app",
        "test_files_of_a_stopped_builder_are_read_and_written",
        "test_ssh_command_returns_streams_and_exit_status",
        "test_blocked_redeploy_keeps_the_old_version_serving",
        "test_broken_app_fails_the_matching_check",
    }
)

#: Tests that say nothing about Incus, with the reason.
NOT_ON_INCUS: Mapping[str, str] = {
    "test_lost_store_is_restored_from_backups": "the pools are Incus's: a lost one is a lost member, "
    "tests/acceptance/test_incus_members.py",
    "test_lost_host_network_is_created_again_at_start": "the network is Incus's, which makes it at its own start",
}


@dataclass(frozen=True)
class OwnEngine:
    """The engine of this machine."""

    #: Name of the fixture of the service that tests share, and of the one for tests of idle builders and short waits.
    shared: str = "own_service"
    idle: str = "idle_service"
    impatient: str = "impatient_service"
    is_incus: bool = False

    def running(self, data_dir: Path, **settings: str) -> AbstractContextManager[LiveService]:
        """A service of its own, which is up until the block ends."""
        return live_service(data_dir, **settings)

    def repository(self, folder: Path) -> AbstractContextManager[RestServer]:
        """A server for backups that the service reaches."""
        return rest_server(folder)

    def disks(self, service: LiveService) -> set[str]:
        instance = json.loads((service.data_dir / "instance.json").read_text())["id"]
        return {path.name for path in Path(f"/run/builderd/{instance}/store/disks").iterdir()}

    def destroy(self, service: LiveService, disk: str) -> None:
        """Remove a disk that no app uses, as a fault of the machine would."""
        instance = json.loads((service.data_dir / "instance.json").read_text())["id"]
        path = f"/run/builderd/{instance}/store/disks/{disk}"
        subprocess.run(["btrfs", "subvolume", "delete", path], check=True, capture_output=True)


@dataclass(frozen=True)
class OnIncus:
    """A cluster; tests work in the network of its first member. One service has the settings of all shared ones."""

    cluster: IncusCluster
    index: str
    shared: str = "incus_service"
    idle: str = "incus_service"
    impatient: str = "incus_service"
    is_incus: bool = True
    _made: Iterator[int] = field(default_factory=lambda: count(1))

    @contextmanager
    def running(self, data_dir: Path, **settings: str) -> Iterator[LiveService]:
        """A service with a project and a network of its own, so that it sees nothing of the shared one."""
        number = next(self._made)
        own = {
            "BUILDERD_INCUS__PROJECT": f"own{number}",
            "BUILDERD_INCUS__NETWORK": f"own{number}",
            "BUILDERD_INCUS__SUBNET": f"10.{100 + number}.0.0/16",
            "BUILDERD_PACKAGE_INDEX": self.index,
            "BUILDERD_EGRESS__ALLOW": f"{address_of(1)}/32",
        }
        with running_on(self.cluster, data_dir, **own, **settings) as service:
            yield service

    def repository(self, folder: Path) -> AbstractContextManager[RestServer]:
        """A server for backups that every member reaches."""
        return rest_server(folder, address_of(1), self.cluster.network_of)

    def disks(self, service: LiveService) -> set[str]:
        return set(disks_on_incus(service))

    def destroy(self, service: LiveService, disk: str) -> None:
        """Remove a disk that no app uses, and what is left of the one that used it, behind the service's back."""
        member = disks_on_incus(service)[disk]
        for one in ask_incus(service, "instances?recursion=1"):
            if any(device.get("source") == disk for device in one["devices"].values()):
                ask_incus(service, f"instances/{one['name']}", "DELETE")
        ask_incus(service, f"storage-pools/default/volumes/custom/{disk}?target={member}", "DELETE")
        assert disk not in disks_on_incus(service)


def engine_params(test: str) -> list[object]:
    """Return the parameters of the fixture ``engine`` for a test marked ``engines``."""
    # The first one of a run makes the cluster; script/soak has a limit of its own.
    marks = [pytest.mark.incus, pytest.mark.timeout(900) if test in EVERY_RUN else pytest.mark.slow]
    return ["own", *([] if test in NOT_ON_INCUS else [pytest.param(INCUS, marks=marks)])]

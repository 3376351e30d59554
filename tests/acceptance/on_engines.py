"""Engines of the acceptance tests marked ``engines``: that of this machine, and a cluster of Incus.

The cluster has three members. Every run has the tests of ``EVERY_RUN`` there, script/soak all but those of
``NOT_ON_INCUS``.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from tests.acceptance.incus_service import (
    INCUS,
    ask_incus,
    disks_on_incus,
    instances_on_incus,
    project_of,
    running_on,
)
from tests.acceptance.live_service import PATIENCE, LiveService, live_service
from tests.backends import RestServer, rest_server
from tests.incus import IncusCluster, address_of

#: One of each part of the engine: layers, jobs, redeploys under load, sleep and wake, backups, files, commands.
EVERY_RUN = frozenset(
    {
        "test_documented_create_call_works",
        "test_finished_job_keeps_its_logs_and_files",
        "test_no_request_fails_during_redeploys_settings_changes_and_rollbacks",
        "test_idle_builder_freezes_and_thaws_for_a_request",
        "test_auto_stopped_builder_starts_for_a_request",
        "test_backup_of_a_running_app_is_restored",
        "test_files_are_shared_with_the_app",
        "test_files_of_a_stopped_builder_are_read_and_written",
        "test_ssh_command_returns_streams_and_exit_status",
    }
)

#: Tests, and whole files, that run on this machine's engine alone, with the reason.
NOT_ON_INCUS: Mapping[str, str] = {
    # files
    "test_adopted_ports.py": "a cluster leads nobody to loopback",
    "test_damaged_rows.py": "the database, before any engine",
    "test_debian_packages.py": "apt in the build sandbox of this machine; `test_packages.py` makes layers there",
    "test_domains.py": "certificates and the proxy, which know no engine",
    "test_full_host.py": "fills the disk below the store of this machine",
    "test_full_store.py": "fills the store of this machine; a full pool: `test_incus_full_pool.py`",
    "test_isolation.py": "gVisor; `strong` is refused there: `test_incus.py`",
    "test_killed_monitors.py": "conmon; ends there come by events: `tests/integration/incus`",
    "test_mcp.py": "tools call the API through the client",
    "test_memory_pressure.py": "control groups of this machine",
    "test_pages.py": "pages call the API; a browser's work",
    "test_postgresql.py": "the database; `test_cluster_services.py` works on one there",
    "test_qa_soak.py": "verdicts on 34 apps; `test_qa_reports.py` makes copies and their reports there",
    "test_ssh_kills.py": "the launcher of this machine; terminals there are Incus's",
    "test_wheel.py": "installs the service on this machine",
    "test_wrong_clock.py": "the clock of the service, which no engine knows",
    # tests
    "test_mixed_operations_leave_nothing_in_the_service": "mounts, groups and firewall of this machine",
    "test_app_gets_credentials_under_strong_isolation": "`strong` is refused there: `test_incus.py`",
    "test_python_of_a_page_that_runs_it_in_the_browser_is_served_under_strong_isolation": "`strong`, as above",
    "test_lost_host_network_is_created_again_at_start": "the network is Incus's, which makes it at its own start",
    "test_lost_store_is_restored_from_backups": "the pools are Incus's: a lost one is a lost member, "
    "`test_incus_members.py`",
    "test_port_in_use_is_named": "the start, before any engine",
    "test_readiness_is_notified_once_and_not_passed_to_apps": "apps there are no children of the service",
    "test_scanner_ends_with_the_service": "the review's processes beside the service",
    "test_second_service_on_the_data_directory_is_refused": "the start, before any engine",
}


@dataclass(frozen=True)
class OwnEngine:
    """The engine of this machine."""

    #: Name of the fixture of the service that tests share, and of the one for tests of idle builders and short waits.
    shared: str = "own_service"
    idle: str = "idle_service"
    impatient: str = "impatient_service"
    is_incus: bool = False
    #: Between two looks at an app that does not freeze at once.
    freeze_look_seconds: float = 0.0

    def running(self, data_dir: Path, **settings: str) -> AbstractContextManager[LiveService]:
        """A service of its own, which is up until the block ends."""
        return live_service(data_dir, **settings)

    def repository(self, folder: Path) -> AbstractContextManager[RestServer]:
        """A server for backups that the service reaches."""
        return rest_server(folder)

    def disks(self, service: LiveService) -> set[str]:
        return {path.name for path in self._disks(service).iterdir()}

    def destroy(self, service: LiveService, disk: str) -> None:
        """Remove a disk that no app uses, as a fault of the machine would."""
        path = self._disks(service) / disk
        subprocess.run(["btrfs", "subvolume", "delete", str(path)], check=True, capture_output=True)

    def disk_files_with(self, service: LiveService, text: str) -> list[str]:
        """Return files on the service's disks that contain a text."""
        return files_with(text, *map(str, self._disks(service).iterdir()))

    def _disks(self, service: LiveService) -> Path:
        instance = json.loads((service.data_dir / "instance.json").read_text())["id"]
        return Path("/run/builderd", instance, "store", "disks")


@dataclass(frozen=True)
class OnIncus:
    """A cluster; tests work in the network of its first member. One service has the settings of all shared ones."""

    cluster: IncusCluster
    #: Settings of a service for the packages of its apps.
    packages: Mapping[str, str]
    shared: str = "incus_service"
    idle: str = "incus_service"
    impatient: str = "incus_service"
    is_incus: bool = True
    _made: Iterator[int] = field(default_factory=lambda: count(1))

    @contextmanager
    def running(self, data_dir: Path, **settings: str) -> Iterator[LiveService]:
        """A service with a project, a network and ports of its own, so that it sees nothing of the shared one."""
        number = next(self._made)
        own = {
            "BUILDERD_INCUS__PROJECT": f"own{number}",
            "BUILDERD_INCUS__NETWORK": f"own{number}",
            "BUILDERD_INCUS__SUBNET": f"10.{100 + number}.0.0/16",
            "BUILDERD_INSIDE_PORT": str(8100 + number),
        }
        with running_on(self.cluster, data_dir, **self.sources, **own, **settings) as service:
            yield service

    @property
    def sources(self) -> Mapping[str, str]:
        """Settings of a service for the packages of its apps, and the way to a repository on the first member."""
        return {**self.packages, "BUILDERD_EGRESS__ALLOW": f"{address_of(1)}/32"}

    @property
    def freeze_look_seconds(self) -> float:
        """Between two looks at an app that does not freeze at once: LXC's, but on cgroups of version 2, which tell."""
        return 0.0 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1.0

    def repository(self, folder: Path) -> AbstractContextManager[RestServer]:
        """A server for backups that every member reaches."""
        return rest_server(folder, address_of(1), self.cluster.network_of)

    def disk_files_with(self, service: LiveService, text: str) -> list[str]:
        """Return files on the service's disks, and on the roots of its instances, that contain a text."""
        places = [*disks_on_incus(service).items(), *instances_on_incus(service).items()]
        folders: dict[str, list[str]] = {}
        for name, member in places:
            kind = "custom" if name.startswith("disk-") else "containers"
            folders.setdefault(member, []).append(f"{kind}/{project_of(service)}_{name}")
        return [
            path
            for member, names in folders.items()
            for path in files_with(text, *self.cluster.in_pool(member, names), inside=self.cluster.inside(member))
        ]

    def disks(self, service: LiveService) -> set[str]:
        return set(disks_on_incus(service))

    def destroy(self, service: LiveService, disk: str) -> None:
        """Remove a disk that no app uses, and the instances that have it, behind the service's back.

        That of an ended app may lose the disk at this moment, by the service's own removal.
        """
        member, deadline = disks_on_incus(service)[disk], time.monotonic() + PATIENCE
        while users := _users_of(service, disk):
            assert time.monotonic() < deadline, f"instances have the disk {disk}: {users}"
            for name in users:
                self.cluster.run("incus", "1", "delete", "--force", "--project", project_of(service), name, check=False)
        ask_incus(service, f"storage-pools/default/volumes/custom/{disk}?target={member}", "DELETE")
        assert disk not in disks_on_incus(service)


def _users_of(service: LiveService, disk: str) -> list[str]:
    """Return the instances that have a disk: its app's, and the helper that wrote its files."""
    return [
        one["name"]
        for one in ask_incus(service, "instances?recursion=1")
        if any(device.get("source") == disk for device in one["devices"].values())
    ]


def files_with(text: str, *folders: str | Path, inside: Sequence[str] = ()) -> list[str]:
    """Return files below these folders that contain a text; an image is looked at by its mount.

    ``inside`` is a command before grep's, which enters the machine that has the folders.
    """
    assert folders, "there is nothing to look at"
    command = [*inside, "grep", "-rlaF", "--exclude=*.img", "--devices=skip", text, *map(str, folders)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode in (0, 1), found.stderr
    return found.stdout.splitlines()


def engine_params(test: str) -> list[object]:
    """Return the parameters of the fixture ``engine`` for a test marked ``engines``."""
    # The first one of a run makes the cluster; script/soak has a limit of its own.
    marks = [pytest.mark.incus, pytest.mark.timeout(900) if test in EVERY_RUN else pytest.mark.slow]
    return ["own", *([] if test in NOT_ON_INCUS else [pytest.param(INCUS, marks=marks)])]

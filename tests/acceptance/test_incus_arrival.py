"""A service of one machine goes on in a cluster: its state is restored there, and its builders from their backups."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.acceptance import scenarios
from tests.acceptance.incus_service import service_on
from tests.acceptance.live_service import LiveService
from tests.backends import rest_server
from tests.incus import running_cluster

pytestmark = [pytest.mark.root, pytest.mark.slow]


def operate(service: LiveService, *words: str) -> None:
    done = subprocess.run(
        service.command(*words), env=service.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_builders_of_one_machine_go_on_in_a_cluster_with_names_tokens_and_files(tmp_path: Path) -> None:
    with (
        running_cluster(2) as cluster,
        cluster.network_of(),
        rest_server(tmp_path / "rest", "10.98.0.11") as server,
    ):
        settings = {"BUILDERD_BACKUP__REPOSITORY": server.url, "BUILDERD_EGRESS__ALLOW": "10.98.0.11/32"}
        (tmp_path / "o").mkdir()
        single = LiveService(tmp_path / "o/data", settings, cold=True)
        try:
            single.start()
            made = [single.create(f"app-{count}", env={"GREETING": f"app {count}"}) for count in range(2)]
            for data in made:
                assert scenarios.run(single, data["uuid"], "echo of $BUILDER_NAME > note")[0] == 0
                answer = single.call("POST", f"/builders/{data['uuid']}/backups")
                assert answer.status_code == 201, answer.text
        finally:
            if single.is_up:
                single.terminate()
            operate(single, "down")
        operate(single, "backup", str(tmp_path / "state"), "--passphrase-file", str(passphrase(tmp_path)))

        (tmp_path / "c").mkdir()
        moved = LiveService(tmp_path / "c/data", settings, cold=True)
        operate(moved, "restore", str(tmp_path / "state"), "--passphrase-file", str(passphrase(tmp_path)))
        with service_on(cluster, tmp_path / "c/data", **settings) as service:
            service.token = single.token
            for count, data in enumerate(made):
                service.wait_served(data)
                assert service.visit(data).text == f"app {count}"
                assert scenarios.run(service, data["uuid"], "cat note") == (0, f"of {data['name']}\n")
            members = {service.builder(data["uuid"])["member"] for data in made}
            assert members == {"node1", "node2"}


def passphrase(folder: Path) -> Path:
    file = folder / "passphrase"
    file.write_text("four words of nonsense")
    return file

"""The API on the engine incus, as a user does it, on a cluster of one member."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.acceptance import scenarios
from tests.acceptance.incus_service import service_on
from tests.acceptance.live_service import TINY_APP, LiveService, body
from tests.incus import running_cluster

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with running_cluster(1) as cluster, service_on(cluster, tmp_path_factory.mktemp("incus") / "data") as service:
        yield service


def test_builder_lives_its_whole_life(service: LiveService) -> None:
    data = service.create("life", env={"GREETING": "good morning"})
    uuid = data["uuid"]
    assert service.visit(data).text == "good morning"
    assert scenarios.run(service, uuid, "echo kept > note; id -u; echo err >&2") == (0, "1000\nerr\n")
    assert service.call("GET", f"/builders/{uuid}/files/note").text == "kept\n"
    assert service.call("PUT", f"/builders/{uuid}/files/put", content=b"from outside").status_code == 201
    assert scenarios.run(service, uuid, "cat put") == (0, "from outside")
    lines = service.call("GET", f"/builders/{uuid}/logs").json()["data"]
    assert any(line["stream"] == "stderr" and "GET /" in line["text"] for line in lines)

    assert service.call("POST", f"/builders/{uuid}/stop").json()["data"]["status"] == "stopped"
    assert service.visit(data).status_code == 503
    assert service.call("POST", f"/builders/{uuid}/exec", json={"command": "true"}).status_code == 409
    assert service.call("POST", f"/builders/{uuid}/start").json()["data"]["status"] == "running"
    assert service.visit(data).text == "good morning"
    assert scenarios.run(service, uuid, "cat note") == (0, "kept\n")

    changed = body("life", TINY_APP.replace(".encode()", ".upper().encode()"), env={"GREETING": "good morning"})
    deployed = service.call("PUT", f"/builders/{uuid}", json=changed)
    assert deployed.status_code == 200, deployed.text
    assert service.visit(data).text == "GOOD MORNING"
    assert scenarios.run(service, uuid, "cat note") == (0, "kept\n")

    assert service.call("DELETE", f"/builders/{uuid}").status_code == 200
    assert service.call("GET", f"/builders/{uuid}").status_code == 404


@pytest.mark.parametrize(("code", "status"), [(0, "completed"), (3, "failed")])
def test_finished_job_keeps_its_logs_and_files(service: LiveService, code: int, status: str) -> None:
    scenarios.job(service, code, status)


@pytest.mark.parametrize("failure", ["exits", "loopback", "other-port", "memory"])
def test_app_that_does_not_start_reports_the_reason(failure: str, service: LiveService) -> None:
    scenarios.failure_to_start(service, failure)


def test_apps_go_on_while_the_service_is_away(service: LiveService) -> None:
    scenarios.absence_of_the_service(service, LiveService.kill)


def test_strong_isolation_is_refused_in_words(service: LiveService) -> None:
    answer = service.call("POST", "/builders", json=body("strong", isolation="strong"))
    assert answer.status_code in (422, 503), answer.text
    assert "engine incus" in answer.json()["message"]

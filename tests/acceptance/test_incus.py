"""The service on the engine incus on a cluster of one member: what tests marked ``engines`` do not say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.acceptance import scenarios
from tests.acceptance.incus_service import service_on
from tests.acceptance.live_service import TINY_APP, LiveService, body
from tests.acceptance.test_memory_pressure import CAP_SYS_RESOURCE, has_capability
from tests.incus import IncusCluster, running_cluster

from builderd.engine.oci.runtime.creation import OOM_SCORE

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[IncusCluster]:
    with running_cluster(1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def service(cluster: IncusCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    data_dir = tmp_path_factory.mktemp("incus") / "data"
    with service_on(cluster, data_dir) as service:
        yield service


def test_apps_go_on_while_the_service_is_away(service: LiveService) -> None:
    scenarios.absence_of_the_service(service, LiveService.kill)


def test_apps_are_killed_for_memory_before_what_runs_the_member(service: LiveService) -> None:
    with service.deployed("scored", {"main.py": TINY_APP}, "python3 main.py") as data:
        scores = "cat /proc/[0-9]*/oom_score_adj | sort -u"
        assert scenarios.run(service, data["uuid"], scores) == (0, f"{OOM_SCORE}\n")
        lower = "app=/proc/$(pgrep -of main.py)/oom_score_adj; echo 0 2>/dev/null > $app; cat $app"
        kept = scenarios.run(service, data["uuid"], lower)[1].splitlines()[-1] == str(OOM_SCORE)
        # The kernel takes the score as the least one only from a process with this capability, as the host's root has.
        assert kept == has_capability(CAP_SYS_RESOURCE)
        # A command's own score is set inside the instance, which sets no least one: docs/cluster.md.
        own = "cat /proc/self/oom_score_adj; echo 0 >/proc/self/oom_score_adj; cat /proc/self/oom_score_adj"
        assert scenarios.run(service, data["uuid"], own) == (0, f"{OOM_SCORE}\n0\n")


def test_strong_isolation_is_refused_in_words(service: LiveService) -> None:
    answer = service.call("POST", "/builders", json=body("strong", isolation="strong"))
    assert answer.status_code in (422, 503), answer.text
    assert "engine incus" in answer.json()["message"]

"""Two services on a cluster of three and one PostgreSQL: what visitors see, and what is lost, when its parts fail."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from tests.acceptance.incus_members import WRITING_APP, Visitors, until, volumes
from tests.acceptance.live_service import PLAIN, LiveService, body
from tests.acceptance.test_cluster_services import Services, share_keys
from tests.incus import IncusCluster, running_cluster
from tests.postgres import PostgresServer, find_binaries, run_server

pytestmark = [pytest.mark.root, pytest.mark.postgres, pytest.mark.slow]

#: PostgreSQL is away for so long.
AWAY_SECONDS = 60.0
#: Calls of the API that need Incus, each refused while it has no quorum.
REFUSED_CALLS = 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[IncusCluster]:
    with running_cluster(3) as cluster:
        cluster.run("incus", "1", "config", "set", "cluster.offline_threshold=11")
        yield cluster


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A server of this module's own, which is stopped."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server in /usr/lib/postgresql: apt-get install postgresql")
    with run_server(binaries) as server:
        yield server


@pytest.fixture(scope="module")
def services(
    cluster: IncusCluster, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Services]:
    with postgres.database() as database, cluster.network_of():
        running = Services(cluster, tmp_path_factory.mktemp("f"), database)
        try:
            running.one.start()
            running.two.data_dir.mkdir()
            share_keys(running.one, running.two)
            running.stand_by(running.two)
            yield running
        finally:
            running.down()


@pytest.fixture
def made(services: Services) -> Iterator[list[dict[str, Any]]]:
    """Two writing apps on each of the members."""
    one = services.one
    made = [one.create(f"app-{count}", WRITING_APP) for count in range(6)]
    assert sorted(one.builder(data["uuid"])["member"] for data in made) == [f"node{n}" for n in (1, 1, 2, 2, 3, 3)]
    yield made
    for data in made:
        one.call("DELETE", f"/builders/{data['uuid']}")


def on(service: LiveService, made: list[dict[str, Any]], member: int) -> list[dict[str, Any]]:
    return [data for data in made if service.builder(data["uuid"])["member"] == f"node{member}"]


def runs(service: LiveService, made: list[dict[str, Any]]) -> dict[str, str]:
    """Return the number of each app's run, as its visitors get it."""
    return {data["uuid"]: service.visit(data).text for data in made}


def counted(service: LiveService, data: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return what the app has written so far, by run."""
    found: dict[str, list[int]] = {}
    for line in service.call("GET", f"/builders/{data['uuid']}/files/written").text.splitlines():
        run, count = line.split()
        found.setdefault(run, []).append(int(count))
    return found


def is_ready(service: LiveService) -> bool:
    return httpx.get(f"{service.url}/readyz", timeout=30, **PLAIN).status_code == 200


def assert_standing_by(service: LiveService) -> None:
    """Assert that the service answers as a standby."""
    answer = httpx.get(f"{service.url}/healthz", timeout=30, **PLAIN)
    assert (answer.status_code, answer.json()["data"]["role"]) == (503, "standby")


def report(what: str, seconds: Mapping[str, float], visitors: list[Visitors]) -> None:
    shown = {name: round(value, 1) for name, value in seconds.items()}
    visits = ", ".join(f"{len(one.answers)} visits, {one.longest:.2f} s at most" for one in visitors)
    sys.stderr.write(f"{what}: seconds {json.dumps(shown)}; {visits}\n")


@pytest.mark.parametrize("fault", ["kill", "cut"])
def test_lost_quorum_stops_changes_alone_until_it_returns(
    fault: str, cluster: IncusCluster, services: Services, made: list[dict[str, Any]]
) -> None:
    one = services.one
    here = on(one, made, 1)
    away = [data for data in made if data not in here]
    halted, deleted = (one.create(name)["uuid"] for name in ("halted", "deleted"))
    before = runs(one, made)
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        visitors = [stack.enter_context(Visitors(one, data)) for data in here]
        for number in ("2", "3"):
            cluster.run(fault, number)
        begun = time.monotonic()
        until(lambda: not is_ready(one))
        seconds["told"] = since(begun)
        for _ in range(REFUSED_CALLS):
            asked = time.monotonic()
            answer = one.call("POST", "/builders", json=body("refused"))
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["Retry-After"]) > 0
            assert "quorum" in answer.json()["message"]
            seconds["a create is refused, at most"] = max(seconds.get("a create is refused, at most", 0), since(asked))
            assert one.call("GET", "/builders").status_code == 200
            asked = time.monotonic()
            answer = one.call("POST", f"/builders/{here[0]['uuid']}/exec", json={"command": "true"})
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["Retry-After"]) > 0
            seconds["a command is refused, at most"] = max(
                seconds.get("a command is refused, at most", 0), since(asked)
            )
        for method, path in (("POST", f"/builders/{halted}/stop"), ("DELETE", f"/builders/{deleted}")):
            asked = time.monotonic()
            answer = one.call(method, path)
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["Retry-After"]) > 0
            assert "quorum" in answer.json()["message"]
            seconds[f"{method} is refused"] = since(asked)
        assert_standing_by(services.two)
        seconds["without quorum"] = since(begun)
        for number in ("2", "3"):
            cluster.run({"kill": "start", "cut": "mend"}[fault], number)
        returned = time.monotonic()
        until(lambda: one.call("POST", "/builders", json=body("meanwhile")).status_code == 201)
        seconds["a create after the return"] = since(returned)
        for data in away:
            one.wait_served(data)
        seconds["all served after the return"] = since(returned)
        until(lambda: one.builder(halted)["status"] == "stopped")
        assert one.call("GET", f"/builders/{deleted}").status_code == 404
        until(lambda: len(volumes(cluster)) == len(made) + 2)
        seconds["stop and deletion done after the return"] = since(returned)
    assert [visits.failures for visits in visitors] == [[]] * len(here)
    assert_standing_by(services.two)
    after = runs(one, made)
    stayed = made if fault == "cut" else here
    assert [data["name"] for data in stayed if after[data["uuid"]] != before[data["uuid"]]] == []
    assert_nothing_lost(one, made, before, after)
    for data in one.call("GET", "/builders").json()["data"]:
        if data["name"] in ("refused", "meanwhile", "halted"):
            one.call("DELETE", f"/builders/{data['uuid']}")
    report(f"quorum lost: {fault}", seconds, visitors)


def test_apps_go_on_while_postgresql_restarts_and_is_away(
    services: Services, postgres: PostgresServer, made: list[dict[str, Any]]
) -> None:
    one = services.one
    before = runs(one, made)
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        visitors = [stack.enter_context(Visitors(one, data)) for data in made]
        postgres.stop()
        postgres.start()
        restarted = time.monotonic()
        until(lambda: one.call("GET", "/builders").status_code == 200)
        seconds["API after a restart"] = since(restarted)

        postgres.stop()
        begun = time.monotonic()
        while since(begun) < AWAY_SECONDS:
            for method, path in (("GET", "/builders"), ("POST", f"/builders/{made[0]['uuid']}/stop")):
                asked = time.monotonic()
                answer = one.call(method, path)
                assert answer.status_code == 503, answer.text
                assert int(answer.headers["Retry-After"]) > 0
                seconds["a call is refused, at most"] = max(seconds.get("a call is refused, at most", 0), since(asked))
            time.sleep(1)
        postgres.start()
        returned = time.monotonic()
        until(lambda: one.call("GET", "/builders").status_code == 200)
        seconds["API after a minute"] = since(returned)
        created = one.create("meanwhile", WRITING_APP)
        seconds["a create after a minute"] = since(returned)
    assert [visits.failures for visits in visitors] == [[]] * len(made)
    assert one.is_up
    assert_standing_by(services.two)
    assert runs(one, made) == before
    assert_nothing_lost(one, made, before, before)
    one.call("DELETE", f"/builders/{created['uuid']}")
    report("PostgreSQL away", seconds, visitors)


def since(begun: float) -> float:
    return time.monotonic() - begun


def assert_nothing_lost(
    service: LiveService, made: list[dict[str, Any]], before: Mapping[str, str], after: Mapping[str, str]
) -> None:
    """Assert that each app's runs are these, one after the other, and that no line is missing."""
    for data in made:
        uuid = data["uuid"]
        found = counted(service, data)
        assert list(found) == list(dict.fromkeys((before[uuid], after[uuid])))
        assert all(counts == list(range(1, len(counts) + 1)) for counts in found.values())

"""A standby of a cluster leads plain visits to apps on both members itself, and loses, shows and forgets none."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import httpx
import pytest
from tests.acceptance.idling import events, until_frozen
from tests.acceptance.live_service import PATIENCE, PLAIN, LiveService
from tests.acceptance.load import load
from tests.acceptance.redeploy_app import FILES, put
from tests.acceptance.test_cluster_services import Services, share_keys
from tests.incus import running_cluster
from tests.postgres import PostgresServer

from builderd.domain.route_list import CLOSED_AFTER

pytestmark = [pytest.mark.root, pytest.mark.postgres, pytest.mark.slow]
#: Seconds; short, so that the test sees an app sleep.
SETTINGS = {"BUILDERD_IDLE__FREEZE_AFTER": "4"}
log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Services]:
    """Two services on the first member of two: the first one works, the second stands by."""
    with running_cluster(2) as cluster, postgres_server.database() as database, cluster.network_of():
        running = Services(cluster, tmp_path_factory.mktemp("services"), database, **SETTINGS)
        try:
            running.one.start()
            with pytest.raises(AssertionError, match="the service ended with 4"):
                running.two.start()
            share_keys(running.one, running.two)
            running.stand_by(running.two)
            running.two.wait_ready()
            yield running
        finally:
            running.down()


def led_by(standby: LiveService) -> int:
    """Return how many visits the standby's own proxy has led."""
    with socket.socket(socket.AF_UNIX) as admin:
        admin.connect(str(standby.data_dir / "standby/admin.sock"))
        admin.sendall(b"show table activity\n")
        admin.shutdown(socket.SHUT_WR)
        rows = b"".join(iter(partial(admin.recv, 65_536), b"")).decode()
    return sum(int(word.partition("=")[2]) for word in rows.split() if word.startswith("http_req_cnt="))


def wait_led(standby: LiveService, data: Mapping[str, Any]) -> None:
    """Wait until the standby leads visits of the app itself."""
    deadline = time.monotonic() + PATIENCE
    while True:
        before = led_by(standby)
        assert standby.visit(data).status_code == 200
        if led_by(standby) > before:
            return
        assert time.monotonic() < deadline, standby.log_tail()
        time.sleep(0.1)


def test_no_visit_through_the_standby_fails_during_redeploys_and_changes_of_settings(services: Services) -> None:
    one, two = services.one, services.two
    with contextlib.ExitStack() as made:
        apps = [
            made.enter_context(one.deployed(f"direct{number}", FILES, "python3 main.py", env={"GREETING": "v1"}))
            for number in range(2)
        ]
        assert len({one.builder(data["uuid"])["member"] for data in apps}) == 2, "on both members"
        for data in apps:
            wait_led(two, data)
        before = led_by(two)
        with contextlib.ExitStack() as visited:
            visits = [visited.enter_context(load(two, data, 10)) for data in apps]
            posts = [visited.enter_context(load(two, data, 1, "POST")) for data in apps]
            for number in range(3):
                for data in apps:
                    put(two, data, files={**FILES, "new.txt": str(number)}, env={"GREETING": f"r{number}"})
                    changed = two.call("PATCH", f"/builders/{data['uuid']}", json={"env": {"GREETING": f"p{number}"}})
                    assert changed.status_code == 200, changed.text
            for data in apps:
                wait_led(two, data)
        led = led_by(two) - before
    for told in (*visits, *posts):
        log.info("%d answered, the longest after %.2f s, failed %s", len(told.seconds), told.longest, told.failed)
        assert told.failed == []
    log.info("%d visits were led by the standby", led)
    assert all({"r0", "p0", "r1", "p1", "r2", "p2"} <= set(told.seen) for told in visits)
    assert led > sum(len(told.seconds) for told in visits) / 2


def test_app_that_is_made_private_is_shown_by_the_standby_no_more(services: Services) -> None:
    one, two = services.one, services.two
    with one.deployed("hides", FILES, "python3 main.py") as data, httpx.Client(**PLAIN) as client:
        url, headers = f"http://127.0.0.1:{two.preview_port}/", {"Host": data["preview_url"].split("/")[2]}
        for _ in range(5):
            wait_led(two, data)
            before = led_by(two)
            assert client.get(url, headers=headers).status_code == 200
            assert led_by(two) == before + 1
            began = time.monotonic()
            hidden = one.call("PATCH", f"/builders/{data['uuid']}", json={"visibility": "private"})
            seconds = time.monotonic() - began
            assert hidden.status_code == 200, hidden.text
            # By the connection that was led there before, and by a new one.
            assert client.get(url, headers=headers).status_code == 401
            assert two.visit(data).status_code == 401
            log.info("private within %.3f s", seconds)
            shown = one.call("PATCH", f"/builders/{data['uuid']}", json={"visibility": "public"})
            assert shown.status_code == 200, shown.text


def test_app_that_is_visited_through_the_standby_alone_does_not_sleep(services: Services) -> None:
    one, two = services.one, services.two
    with (
        one.deployed("awake", FILES, "python3 main.py", auto_stop_interval=600) as visited,
        one.deployed("sleeps", FILES, "python3 main.py", auto_stop_interval=600) as idle,
    ):
        wait_led(two, visited)
        with load(two, visited, 2) as visits:
            until_frozen(one, idle)
            before = led_by(two), len(visits.seconds)
            time.sleep(10)
            led, answered = led_by(two) - before[0], len(visits.seconds) - before[1]
            assert abs(led - answered) <= 2, "none of them passed the service that works"
            assert events(one, visited, "sandbox.frozen") == []
        assert visits.failed == []
        until_frozen(one, visited)
        assert two.visit(visited).status_code == 200, "passed on, and woken there"


def test_killed_standby_delays_one_change_by_its_time_and_no_other_one(services: Services) -> None:
    one, two = services.one, services.two
    with one.deployed("delayed", FILES, "python3 main.py") as data:
        wait_led(two, data)
        two.kill()
        seconds = []
        for visibility in ("private", "public", "private"):
            began = time.monotonic()
            changed = one.call("PATCH", f"/builders/{data['uuid']}", json={"visibility": visibility})
            assert changed.status_code == 200, changed.text
            seconds.append(time.monotonic() - began)
            # Its proxy lives.
            assert two.visit(data).status_code == (200 if visibility == "public" else 401)
        log.info("changes beside a killed standby took %s", ", ".join(f"{one:.2f} s" for one in seconds))
        assert seconds[2] < CLOSED_AFTER
        services.stand_by(two)
        two.wait_ready()
        wait_led(two, one.call("PATCH", f"/builders/{data['uuid']}", json={"visibility": "public"}).json()["data"])

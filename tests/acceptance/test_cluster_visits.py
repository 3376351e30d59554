"""Visits of running apps go on through the standby of a cluster while the service that works is replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from tests.acceptance.live_service import TINY_APP, LiveService
from tests.acceptance.test_cluster_services import Asking, Services, share_keys, wait_working
from tests.incus import running_cluster
from tests.postgres import PostgresServer

from builderd.bootstrap.passing_on import CALM_INTERVAL

pytestmark = [pytest.mark.root, pytest.mark.postgres, pytest.mark.slow]
#: While the standby frees its ports for itself, they are closed for a moment.
MOST_FAILURES = 5


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Services]:
    """Two services on one member of two, of which the first works."""
    with running_cluster(2) as cluster, postgres_server.database() as database, cluster.network_of():
        running = Services(cluster, tmp_path_factory.mktemp("services"), database)
        try:
            running.one.start()
            with pytest.raises(AssertionError, match="the service ended with 4"):
                running.two.start()
            share_keys(running.one, running.two)
            yield running
        finally:
            running.down()


def replaced(worker: LiveService, standby: LiveService, end: Callable[[], object]) -> None:
    """End the service that works, while visitors ask the standby, until that one works.

    The visits are those of public apps on both members, of a private one, and of one that was made private just before.
    """
    # Each time other names: those of the same service are taken by then.
    name = f"{worker.data_dir.name}-{end.__name__}"
    public = [worker.create(f"public{number}-{name}") for number in range(2)]
    assert len({worker.builder(one["uuid"])["member"] for one in public}) == 2, "on both members"
    private = worker.create(f"private-{name}", visibility="private")
    changed = worker.create(f"changed-{name}")
    for one in public:
        standby.wait_served(one)
    # Read by the standby at its next look.
    time.sleep(CALM_INTERVAL + 2)
    hidden = worker.call("PATCH", f"/builders/{changed['uuid']}", json={"visibility": "private"})
    assert hidden.status_code == 200, hidden.text
    visits = [Asking(partial(standby.visit, one)) for one in public]
    refused = [Asking(partial(standby.visit, one)) for one in (private, changed)]
    with contextlib.ExitStack() as asked:
        for asking in (*visits, *refused):
            asked.enter_context(asking)
        began = time.monotonic()
        end()
        wait_working(standby)
        for one in public:
            standby.wait_served(one)
        seconds = time.monotonic() - began
        time.sleep(5)
    for asking in visits:
        print(f"continued after {seconds:.1f} s; visits: {asking.described()}")  # noqa: T201
    for asking in visits:
        assert sum(status != 200 for _, _, status in asking.answers) <= MOST_FAILURES
    assert not [status for asking in refused for _, _, status in asking.answers if status == 200]
    # No earlier app's address: that one gets its visitors, and no others.
    later = standby.create(f"later-{name}", TINY_APP.replace('"hello"', '"later"'))
    assert [standby.visit(one).text for one in (*public, later)] == ["hello", "hello", "later"]


def test_visits_go_on_while_a_killed_service_is_continued(services: Services) -> None:
    services.stand_by(services.two)
    services.two.wait_ready()
    replaced(services.one, services.two, services.one.kill)


def test_visits_go_on_while_a_service_that_ends_in_order_is_continued(services: Services) -> None:
    services.stand_by(services.one)
    services.one.wait_ready()
    replaced(services.two, services.one, services.two.terminate)


def test_visits_wait_and_go_on_while_a_service_is_continued_that_was_lost_with_its_proxy(services: Services) -> None:
    """A lost machine does the same: the standby learns of it by the silent lease alone."""
    services.stand_by(services.two)
    services.two.wait_ready()
    one = services.one

    def lose() -> None:
        pids = [int((one.data_dir / f"previews/{name}.pid").read_text()) for name in ("fence", "guard", "haproxy")]
        one.kill()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    replaced(one, services.two, lose)
